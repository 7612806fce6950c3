"""The exact dense energy: every pair of pixels, at ToCo's size on a GPU, and where it takes no minutes on a CPU.

`published` is the room's reference, blocks of affinities in plain PyTorch; `rewrite` makes those in one operation, and
all that is linear in pixels as the published code does.
"""

from functools import partial

import torch
from bench_dense_energy import by_reference, energy_inputs, published_energy
from harness import DEVICE, Bench, Case

from toco_kernels import dense_energy_from_logits
from toco_kernels.dense_energy import reference

SIZE = 448 if DEVICE == "cuda" else 128
ROWS = 1024  # of affinities at a time


def all_pairs(image, values, sigma_rgb=15.0, sigma_xy=50.0):
    """The filter in three operations on blocks of affinities: distances, exponential, product."""
    scales = image.new_tensor([1 / sigma_xy] * 2 + [1 / sigma_rgb] * 3)
    points = reference.features(image, image.shape[2:], len(image), dtype=image.dtype, device=image.device) * scales
    values, filtered = values.detach().flatten(2).mT, []
    for rows in points.split(ROWS, dim=1):
        distances = torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist")
        filtered.append(distances.square_().mul_(-0.5).exp_().to(values.dtype) @ values)
    return torch.cat(filtered, dim=1).mT.reshape(len(image), -1, *image.shape[2:])


def inputs(generator, *, batch=2, classes=21, size=SIZE):
    return energy_inputs(generator, batch=batch, classes=classes, size=size, kernel="exact")


def flop(direction, *, image, logits, **_):
    """Differences, squares and sums of five features, and a product and a sum for each class, of every pair."""
    batch, classes, height, width = logits.shape
    return batch * (height * width // 4) ** 2 * (3 * 5 + 2 * classes)


EXACT = Bench(
    room="dense_energy",
    op="dense_energy_from_logits",
    providers={
        "toco_kernels": dense_energy_from_logits,
        "published": by_reference(dense_energy_from_logits),
        "rewrite": partial(published_energy, filter_maps=all_pairs),
    },
    inputs=inputs,
    differentiable=("logits",),
    flop=flop,
    tiny={"batch": 1, "classes": 2, "size": 32},
    cases=[
        Case("exact, VOC", {"batch": 1}, decisive=True),
        Case("exact, COCO", {"classes": 81}),
    ],
)


@EXACT.every_case
def test_exact_energy_from_logits(case, direction, compare):
    compare(EXACT, case, direction)
