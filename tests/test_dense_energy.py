"""What is particular to dense_energy; the rest is in test_contract.py."""

import os
import sys
import time
from functools import partial
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from rooms import energy_inputs, filter_inputs, logit_inputs
from torch import nn

import toco_kernels.numpy
from toco_kernels import (
    DenseCRF,
    DenseEnergyLoss,
    bilateral_filter,
    compat,
    dense_crf,
    dense_energy,
    dense_energy_from_logits,
)
from toco_kernels._library import NOT_LOADED
from toco_kernels.common import measure
from toco_kernels.testing import reference_only

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def golden(name, device="cpu"):
    """What the authors' code returns."""
    arrays = np.load(Path(__file__).parent / "golden" / f"{name}.npz")
    return {name: torch.from_numpy(arrays[name]).to(device) for name in arrays}


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("wrap", [reference_only, torch.no_grad], ids=["reference", "kernel"])
@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_golden_filter(kernel, wrap, device):
    theirs = golden("dense_energy", device)
    sigmas = {name: theirs[name].item() for name in ("sigma_rgb", "sigma_xy")}
    with wrap():
        actual = bilateral_filter(theirs["image"], theirs["probabilities"], kernel=kernel, **sigmas)
    assert relative(actual, theirs[kernel]) < 1e-6
    assert ((actual - theirs[kernel]) / theirs[kernel]).abs().max() < 1e-5


@pytest.mark.parametrize("wrap", [reference_only, torch.enable_grad], ids=["reference", "kernel"])
def test_golden_loss(wrap, device):
    theirs = golden("energy_loss", device)
    image = theirs["image"] * torch.tensor(STD, device=device)[:, None, None]
    image += torch.tensor(MEAN, device=device)[:, None, None]
    logits = theirs["logits"].requires_grad_()
    with wrap():
        energy = dense_energy_from_logits(image, logits, theirs["labels"], theirs["boxes"], kernel="lattice")
    (1e-7 * energy).backward()
    assert 1e-7 * energy.item() == pytest.approx(theirs["loss"].item(), rel=1e-6)
    assert relative(logits.grad, theirs["grad_logits"]) < 1e-5


def test_exact_gradient_where_nothing_is_gated(device):
    """Where all pixels count and none has a label, the gate is constant, and the published gradient the derivative."""
    inputs = energy_inputs("exact", 2, 3, 4, 5, roi=torch.ones(2, 4, 5), unlabeled=torch.ones(2, 4, 5))
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    probabilities = inputs.pop("probabilities").requires_grad_()
    assert torch.autograd.gradcheck(lambda p: dense_energy(probabilities=p, **inputs), (probabilities,))


@pytest.mark.parametrize("boxes", ["tensor", "list"])
def test_compat_golden(boxes, device):
    """The published names and argument order, with labels and boxes that lie elsewhere."""
    theirs = golden("energy_loss")
    logits = theirs["logits"].to(device).requires_grad_()
    box = theirs["boxes"] if boxes == "tensor" else theirs["boxes"].tolist()
    layer = compat.DenseEnergyLoss(1e-7, 15, 100, 0.5)
    loss = compat.get_energy_loss(theirs["image"].to(device), logits, theirs["labels"], box, layer)
    assert loss.shape == theirs["loss"].shape
    assert loss.device == logits.device
    assert loss.item() == pytest.approx(theirs["loss"].item(), rel=1e-6)
    loss.backward()
    assert relative(logits.grad.cpu(), theirs["grad_logits"]) < 1e-5


class Unknown(nn.Module):
    """A loss layer that is not ours: it gets what the published code passes."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, images, segmentations, ROIs, seg_label):
        assert seg_label.dtype == torch.uint8
        assert seg_label.shape == (len(images), 1, *images.shape[2:])
        return self.layer(images, segmentations, ROIs, seg_label)


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
@pytest.mark.parametrize("boxed", [True, False])
def test_compat_layer_on_probabilities(kernel, boxed, device):
    """The layer called as published gives what the fused operator gives."""
    theirs = golden("energy_loss", device)
    layer = compat.DenseEnergyLoss(1e-7, 15, 100, 0.5, kernel=kernel)
    box = theirs["boxes"] if boxed else None
    fused, grads = [], []
    for loss_layer in (layer, Unknown(layer)):
        logits = theirs["logits"].clone().requires_grad_()
        fused.append(compat.get_energy_loss(theirs["image"], logits, theirs["labels"], box, loss_layer))
        grads.append(torch.autograd.grad(fused[-1], logits)[0])
    torch.testing.assert_close(fused[0], fused[1])
    assert relative(grads[0], grads[1]) < 1e-5


def test_compat_function():
    """Called directly, as some training scripts do, and with the types that its callers pass."""
    inputs = energy_inputs("lattice")
    images, maps, rois, unlabeled = (inputs[n].float() for n in ("image", "probabilities", "roi", "unlabeled"))
    maps.requires_grad_()
    energy = dense_energy(images, maps, rois, unlabeled, kernel="lattice", sigma_rgb=15.0, sigma_xy=5.0)
    shape = rois.shape
    loss = compat.DenseEnergyLossFunction.apply(images, maps, 15, 5, rois, unlabeled.bool())
    assert loss.shape == (1,)
    assert rois.shape == shape
    assert torch.equal(loss[0], energy)
    for actual, expected in zip(*(torch.autograd.grad(x.sum(), maps) for x in (loss, energy)), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["sigma_rgb", "sigma_xy", "scale_factor"])
def test_compat_layer_names_what_is_wrong(name):
    theirs = golden("energy_loss")
    options = {"weight": 1e-7, "sigma_rgb": 15, "sigma_xy": 100, "scale_factor": 0.5} | {name: 0}
    tensors = (theirs[n] for n in ("image", "logits", "labels", "boxes"))
    with pytest.raises(ValueError, match=rf"^{name} must be positive.*, got 0"):
        compat.get_energy_loss(*tensors, compat.DenseEnergyLoss(**options))


def test_compat_scales_the_exact_kernel():
    """So that a weight tuned on the lattice keeps its meaning on photographs; on noise the two differ by more."""
    theirs = {name: array.numpy() for name, array in golden("dense_energy").items()}
    filtered = {kernel: np.zeros(5 * 44 * 60, np.float32) for kernel in ("lattice", "exact")}
    for kernel, out in filtered.items():
        arguments = theirs["image"], theirs["probabilities"], out, 1, 5, 44, 60, 15.0, 50.0
        compat.bilateralfilter_batch(*arguments, kernel)
    assert filtered["exact"].sum() == pytest.approx(filtered["lattice"].sum(), rel=0.05)
    assert np.linalg.norm(filtered["exact"] - filtered["lattice"]) < 0.1 * np.linalg.norm(filtered["lattice"])


def test_compat_bilateralfilter():
    """The extension's buffers, written in place; the number of threads stays."""
    theirs = {name: array.numpy() for name, array in golden("dense_energy").items()}
    image, values = theirs["image"].flatten(), theirs["probabilities"].flatten()
    out, threads = np.zeros_like(values), torch.get_num_threads()
    compat.bilateralfilter_batch(image, values, out, 1, 5, 44, 60, 15.0, 50.0)
    np.testing.assert_allclose(out.reshape(1, 5, 44, 60), theirs["lattice"], rtol=1e-5)
    assert torch.get_num_threads() == threads
    compat.bilateralfilter_batch(image, values, out, 1, 5, 44, 60, 15.0, 50.0, "exact")
    np.testing.assert_allclose(out.reshape(1, 5, 44, 60), 0.6 * theirs["exact"], rtol=1e-5)
    one = np.zeros(44 * 60, np.float32)
    compat.bilateralfilter(image, values[: 44 * 60], one, 44, 60, 15.0, 50.0)
    np.testing.assert_allclose(one.reshape(44, 60), theirs["lattice"][0, 0], rtol=1e-5)
    with pytest.raises(ValueError, match=r"^outs must have 13200 numbers, got 2640"):
        compat.bilateralfilter_batch(image, values, one, 1, 5, 44, 60, 15.0, 50.0)
    with pytest.raises(TypeError, match=r"^ins must be a float32"):
        compat.bilateralfilter_batch(image, values.astype(np.float64), out, 1, 5, 44, 60, 15.0, 50.0)
    for sigmas, name in (((0, 50.0), "sigmargb"), ((15.0, -1), "sigmaxy")):
        with pytest.raises(ValueError, match=rf"^{name} must be positive, got"):
            compat.bilateralfilter_batch(image, values, out, 1, 5, 44, 60, *sigmas)
    with pytest.raises(ValueError, match=r"^outs must be contiguous"):
        compat.bilateralfilter(image, values[: 44 * 60], np.zeros(2 * 44 * 60, np.float32)[::2], 44, 60, 15.0, 50.0)


def test_modules():
    inputs = logit_inputs("lattice")
    options = {name: inputs.pop(name) for name in ("scale_factor", "sigma_rgb", "sigma_xy")}
    kernel = inputs.pop("kernel")
    energy = dense_energy_from_logits(**inputs, kernel=kernel, **options)
    module = DenseEnergyLoss(kernel, weight=0.25, **options)
    assert torch.equal(module(**inputs), 0.25 * energy)
    assert repr(module) == (
        "DenseEnergyLoss(kernel='lattice', weight=0.25, sigma_rgb=15.0, sigma_xy=10.0, scale_factor=0.5)"
    )
    crf = DenseCRF("exact", iterations=2, gaussian=(1, 3), bilateral=(67, 3, 4))
    maps = inputs["image"], inputs["logits"].softmax(1)
    expected = dense_crf(*maps, kernel="exact", iterations=2, gaussian=(1, 3), bilateral=(67, 3, 4))
    assert torch.equal(crf(*maps), expected)
    assert repr(crf) == "DenseCRF(kernel='exact', iterations=2, gaussian=[1.0, 3.0], bilateral=[67.0, 3.0, 4.0])"
    with pytest.raises(ValueError, match=r"^kernel must be 'lattice' or 'exact', got 'gauss'"):
        DenseCRF("gauss")
    with pytest.raises(ValueError, match=r"^scale_factor must be positive and finite, got 0"):
        DenseEnergyLoss("lattice", scale_factor=0)


@pytest.mark.parametrize("wrap", [reference_only, torch.no_grad], ids=["reference", "kernel"])
def test_exact_kernel_refuses_minutes(wrap):
    """Before it starts: 3000 x 3000 pixels are 8e13 pairs."""
    image, probabilities = torch.zeros(1).expand(1, 3, 3000, 3000), torch.full((1,), 0.5).expand(1, 2, 3000, 3000)
    mask = torch.ones(1).expand(1, 3000, 3000)
    refused = {
        "energy": lambda: dense_energy(image, probabilities, mask, mask, kernel="exact"),
        "logits": lambda: dense_energy_from_logits(image, probabilities, mask.long(), kernel="exact", scale_factor=1),
        "filter": lambda: bilateral_filter(image, probabilities, kernel="exact"),
        "crf": lambda: dense_crf(image, probabilities, kernel="exact"),
        "arrays": lambda: toco_kernels.numpy.dense_crf(image.numpy(), probabilities.numpy(), kernel="exact"),
    }
    message = r"exact kernel .* minutes on \d+ cores? for 1 x 3000 x 3000 pixels and 2 classes: use kernel='lattice'"
    for call in refused.values():
        with pytest.raises(RuntimeError, match=message), wrap():
            call()


def wide(width):
    """An image of random colours and a class map, 100 pixels high, and their filtering."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 100, width, generator=generator) * 255
    values = torch.rand(1, 1, 100, width, generator=generator)
    torch.set_num_threads(1)
    return partial(bilateral_filter, image, values, kernel="lattice")


@pytest.mark.skipif("_torch_cpu" in NOT_LOADED, reason="no CPU kernels here")
def test_lattice_is_linear_in_pixels(monkeypatch, threads):
    """Ten times the pixels, 3000 in a row, take well below thirty times the time and memory; a hundred, if squared."""
    seconds = {}
    for width in (300, 3000):
        call = wide(width)
        for _ in range(3):
            start = time.process_time()
            filtered = call()
            seconds[width] = min(seconds.get(width, inf), time.process_time() - start)
        assert filtered.isfinite().all()
    assert seconds[3000] < 30 * seconds[300]
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("only Linux tells how much memory a process had")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the process that measures imports this file
    narrow, whole = (measure.peak_mb(f"{__name__}:wide", width) for width in (300, 3000))
    assert whole < 30 * narrow


@pytest.mark.skipif("_torch_cpu" in NOT_LOADED, reason="no CPU kernels here")
def test_many_threads_build_one_lattice(threads):
    """Each numbers the points of its pixels, and the numbers are joined: the same bits, and the reference's sums."""
    inputs = filter_inputs("lattice", 1, 3, 128, 168)  # five times the pixels that one thread is woken for
    inputs = {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    crf = {"probabilities": inputs["values"], "image": inputs["image"], "kernel": "lattice", "iterations": 2}
    threads(1)
    expected = bilateral_filter(**inputs), dense_crf(**crf)
    for count in (2, 3, 5):
        threads(count)
        for actual, same in zip((bilateral_filter(**inputs), dense_crf(**crf)), expected, strict=True):
            assert torch.equal(actual, same)
    with reference_only():
        assert relative(bilateral_filter(**inputs), expected[0]) < 1e-6


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_nan_stays_seen_without_gradients(kernel, device):
    """A NaN in an image or in maps reaches the filter's and the mean field's result."""
    inputs = filter_inputs(kernel)
    for name in ("image", "values"):
        image, values = (inputs[n].to(device, torch.float32, copy=True) for n in ("image", "values"))
        {"image": image, "values": values}[name][0, 0, 3, 4] = torch.nan
        assert bilateral_filter(image, values, kernel=kernel).isnan().any()
        assert dense_crf(image, values, kernel=kernel, iterations=2).isnan().any()


def test_colours_beyond_the_lattice_are_not_numbers():
    """Where float32 has no digits left to interpolate with, the result says so instead of being arbitrary."""
    image, values = torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 2, 2)
    image[0, 0, 0, 0] = 1e9
    assert bilateral_filter(image, values, kernel="lattice", sigma_rgb=1.0).isnan().all()
    image[0, 0, 0, 0] = 1e5  # far apart, but numbers
    assert bilateral_filter(image, values, kernel="lattice", sigma_rgb=1.0).isfinite().all()
