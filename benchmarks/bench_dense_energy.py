"""Dense energy at ToCo's sizes, its filter alone, and the dense CRF at VOC's.

`published` is the published structure with a lattice of our own in C++ (plain_lattice.cpp): images in parallel, one
channel after the other, and softmax, resizing and gate by autograd. The authors' extension was once measured at 43 ms
for an image of 224 x 224 with 21 channels on one thread, and at 148 ms with 81: ours is the faster one. `rewrite` is
the room's reference, all channels at once in plain PyTorch.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from harness import TRAINING, Bench, Case

from toco_kernels import bilateral_filter, dense_crf, dense_energy_from_logits
from toco_kernels.testing import reference_only


def photograph(generator, height, width):
    """Regions of a colour, shading and noise: as many points of the lattice as photographs have, or a few more.

    At 224 x 224 with sigmas of 15 and 50 there are 7900 (photographs of VOC: 4500 to 6800), at 375 x 500 with 3 and 67
    there are 254 000 (photographs: 113 000 to 312 000).
    """
    colours = torch.rand(24, 3, generator=generator) * 255
    centres = torch.rand(24, 2, generator=generator) * torch.tensor([height, width])
    pixels = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    image = colours[torch.cdist(pixels, centres).argmin(1)].T.reshape(1, 3, height, width)
    shading = F.interpolate(torch.randn(1, 3, 7, 7, generator=generator) * 25, (height, width), mode="bicubic")
    return (image + shading + torch.randn(image.shape, generator=generator) * 5).clamp(0, 255).round()


def smooth(generator, batch, classes, height, width):
    coarse = torch.randn(batch, classes, height // 16, width // 16, generator=generator) * 4
    return F.interpolate(coarse, (height, width), mode="bilinear")


def photographs(generator, batch, height, width):
    return torch.cat([photograph(generator, height, width) for _ in range(batch)])


def energy_inputs(generator, *, batch=2, classes=21, size=448, kernel="lattice"):
    labels = torch.randint(classes, (batch, size, size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.4] = 255
    return {
        "image": F.interpolate(photographs(generator, batch, size // 2, size // 2), (size, size)),
        "logits": smooth(generator, batch, classes, size, size),
        "labels": labels,
        "boxes": torch.tensor([[0, size, 0, size]] * batch),
        "kernel": kernel,
    }


def filter_inputs(generator, *, batch=2, classes=21, height=224, width=224, kernel="lattice"):
    values = smooth(generator, batch, classes, height, width).softmax(1)
    return {"image": photographs(generator, batch, height, width), "values": values, "kernel": kernel}


def crf_inputs(generator, *, batch=1, classes=21, height=375, width=500, iterations=10, kernel="lattice"):
    probabilities = smooth(generator, batch, classes, height, width).softmax(1)
    image = photographs(generator, batch, height, width)
    return {"image": image, "probabilities": probabilities, "kernel": kernel, "iterations": iterations}


@functools.cache
def plain_lattice():
    """The rival's library, compiled once in a process."""
    compiler = shutil.which("c++") or pytest.fail("no C++ compiler for the plain lattice")
    library = Path(tempfile.mkdtemp()) / "plain_lattice.so"
    source = Path(__file__).with_name("plain_lattice.cpp")
    options = ["-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([compiler, *options, source, "-o", library], check=True)
    return ctypes.CDLL(library)


def plain_filter(image, values, *, name="bilateral", sigma_rgb=15.0, sigma_xy=50.0, kernel="lattice"):
    image, values = image.float().cpu().contiguous(), values.detach().cpu().contiguous()
    function = getattr(plain_lattice(), f"{name}_{str(values.dtype).removeprefix('torch.')}")
    filtered = torch.empty_like(values)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (image, values, filtered)]
    sigmas = [ctypes.c_double(sigma) for sigma in (sigma_rgb, sigma_xy)]
    function(*pointers, *values.shape, *sigmas, min(len(image), torch.get_num_threads()))
    return filtered


def published_energy(image, logits, labels, boxes, kernel, filter_maps=plain_filter):
    """As published: softmax at full size, everything resized, and a gate for every class."""
    probabilities = logits.softmax(dim=1)
    region = torch.zeros_like(probabilities[:, 0])
    for b, (y0, y1, x0, x1) in enumerate(boxes.tolist()):
        region[b, y0:y1, x0:x1] = 1
    half = {"scale_factor": 0.5, "recompute_scale_factor": True}
    images, region = F.interpolate(image, **half), F.interpolate(region[:, None], **half)
    probabilities = F.interpolate(probabilities, mode="bilinear", align_corners=False, **half)
    unlabeled = F.interpolate(labels[:, None].to(probabilities.dtype), **half).long() == 255
    region = region.expand_as(probabilities)
    gate = (region - probabilities.detach().amax(1, keepdim=True)).masked_fill(unlabeled, 1).clamp(min=0)
    inside = probabilities * region
    filtered = filter_maps(images, inside) * gate
    energy = -(inside * filtered).sum() / len(logits)
    return 2 * energy - energy.detach()


def published_crf(image, probabilities, kernel, iterations, gaussian=(3.0, 3.0), bilateral=(67.0, 3.0, 4.0)):
    """As pydensecrf computes it, with the plain lattice; its positions are found again in every iteration."""
    filters = [
        (functools.partial(plain_filter, image, name="gaussian", sigma_xy=gaussian[0]), gaussian[1]),
        (functools.partial(plain_filter, image, sigma_xy=bilateral[0], sigma_rgb=bilateral[1]), bilateral[2]),
    ]
    ones = torch.ones_like(probabilities[:, :1])
    norms = [(f(ones) + 1e-20).rsqrt() for f, _ in filters]
    logits = probabilities.clamp(1e-5, 1).log()
    q = logits.softmax(1)
    for _ in range(iterations):
        pairs = zip(filters, norms, strict=True)
        q = (logits + sum(weight * norm * f(norm * q) for (f, weight), norm in pairs)).softmax(1)
    return q


def by_reference(function):
    @functools.wraps(function)
    def rewrite(**inputs):
        with reference_only():
            return function(**inputs)

    return rewrite


def filter_flop(direction, *, image, values, **_):
    return 2 * 2 * 6 * values.numel()  # every pixel spreads to and reads from the six corners of its simplex


def energy_flop(direction, *, image, logits, **_):
    filtered = 2 * 2 * 6 * logits.numel() // 4
    return filtered + (20 if direction == TRAINING else 10) * logits.numel()


def crf_flop(direction, *, image, probabilities, iterations, **_):
    return iterations * 2 * 2 * (6 + 3) * probabilities.numel()


ENERGY = Bench(
    room="dense_energy",
    op="dense_energy_from_logits",
    providers={
        "toco_kernels": dense_energy_from_logits,
        "published": published_energy,
        "rewrite": by_reference(dense_energy_from_logits),
    },
    inputs=energy_inputs,
    differentiable=("logits",),
    flop=energy_flop,
    tiny={"batch": 1, "classes": 2, "size": 32},
    cases=[Case("ToCo, VOC", {}, decisive=True), Case("ToCo, COCO", {"classes": 81})],
)

FILTER = Bench(
    room="dense_energy",
    op="bilateral_filter",
    providers={
        "toco_kernels": bilateral_filter,
        "published": plain_filter,
        "rewrite": by_reference(bilateral_filter),
    },
    inputs=filter_inputs,
    flop=filter_flop,
    tiny={"batch": 1, "classes": 2, "height": 32, "width": 32},
    cases=[
        Case("21 channels", {}, decisive=True),
        Case("81 channels", {"classes": 81}),
        Case("one image", {"batch": 1}),
        Case("3000 wide", {"batch": 1, "height": 300, "width": 3000, "classes": 8}),
    ],
)

CRF = Bench(
    room="dense_energy",
    op="dense_crf",
    providers={"toco_kernels": dense_crf, "published": published_crf},  # the reference takes minutes
    inputs=crf_inputs,
    flop=crf_flop,
    tiny={"height": 32, "width": 32, "iterations": 1},
    cases=[Case("VOC", {}, decisive=True)],
)


@ENERGY.every_case
def test_dense_energy_from_logits(case, direction, compare):
    compare(ENERGY, case, direction)


@FILTER.every_case
def test_bilateral_filter(case, direction, compare):
    compare(FILTER, case, direction)


@CRF.every_case
def test_dense_crf(case, direction, compare):
    compare(CRF, case, direction)
