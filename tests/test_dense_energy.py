"""What is particular to dense_energy; the rest is in test_contract.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rooms import energy_inputs

from toco_kernels import bilateral_filter, dense_energy, dense_energy_from_logits
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
