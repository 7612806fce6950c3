"""The launchers of cam_regularization, on tensors of the CPU. tests/test_cam_regularization_triton.py starts this."""

import pytest
import torch
from rooms import ADAPTIVE_MIN_POOLING, SEAM_LOSSES, pooling_inputs, seam_inputs
from rooms.cam_regularization import raised

from toco_kernels import _library
from toco_kernels.cam_regularization import op, triton_kernel
from toco_kernels.testing import assert_matches_reference, run, to_dtype

# Interpreted, a program takes a second for each thousand pixels that it asks: as few as have every case among them.
SMALL = {"batch": 1, "classes": 2, "size": (2, 3), "other_size": (3, 2), "present": 1.0, "sizes": ((4, 5), (3, 3))}
SEAM_CASES = {
    "sample": lambda: seam_inputs(**SMALL | {"batch": 2, "present": 0.5}),
    "on their grids": lambda: seam_inputs(**SMALL | {"sizes": None}),
    "ranges above 0, few differences": lambda: raised(seam_inputs(**SMALL, share=0.1)),
    "maps become smaller": lambda: seam_inputs(**SMALL | {"size": (5, 4), "sizes": ((3, 3), (2, 2))}),
    "one pixel": lambda: seam_inputs(**SMALL | {"other_size": (1, 1), "sizes": ((3, 4), (1, 1))}),
    "the background alone": lambda: seam_inputs(**SMALL | {"present": 0.0}),
    "empty batch": lambda: seam_inputs(**SMALL | {"batch": 0}),
}
POOLING_CASES = {
    "sample": lambda: raised(pooling_inputs(2, 3, size=(3, 4))) | {"size": (8, 7)},
    "negative maps": lambda: pooling_inputs(1, 2, present=1.0, size=(3, 4)) | {"size": (6, 7)},
    "on their grid": lambda: raised(pooling_inputs(1, 2, size=(3, 4), present=1.0)),
    "becomes smaller": lambda: raised(pooling_inputs(1, 2, size=(9, 8), present=1.0)) | {"size": (4, 5)},
    "one pixel, stretched": lambda: raised(pooling_inputs(1, 2, size=(1, 1), present=1.0)) | {"size": (3, 4)},
    "no class": lambda: pooling_inputs(2, 3, size=(3, 4), present=0.0),
    "empty batch": lambda: pooling_inputs(0),
}


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """The public functions, with launchers behind them; sums differ only where the compiler may fuse."""
    losses = {
        "_equivariant": (_library._LossOfTwo, triton_kernel.equivariant_loss),
        "_cross_equivariant": (_library._Loss, triton_kernel.cross_equivariant_loss),
        "_min_pooling": (_library._Loss, triton_kernel.min_pooling_loss),
    }

    def loss(function, launcher):
        if function is _library._LossOfTwo:
            return lambda *args: function.apply(launcher, (True, True), *args)
        return lambda *args: function.apply(launcher, *args)

    for name, of in losses.items():
        monkeypatch.setattr(op, name, loss(*of))


def judge(room, inputs):
    assert_matches_reference(
        room.function, room.reference, inputs, differentiable=room.differentiable, terms=room.terms, by_chance=True
    )


@pytest.mark.parametrize("case", SEAM_CASES)
def test_seam_losses(case):
    judge(SEAM_LOSSES, to_dtype(SEAM_CASES[case](), torch.float32))


@pytest.mark.parametrize("case", POOLING_CASES)
def test_adaptive_min_pooling(case):
    judge(ADAPTIVE_MIN_POOLING, to_dtype(POOLING_CASES[case](), torch.float32))


@pytest.mark.parametrize("room", [SEAM_LOSSES, ADAPTIVE_MIN_POOLING], ids=str)
def test_several_blocks(room, monkeypatch):
    """Of maps so small that real blocks would hold all of them."""
    monkeypatch.setattr(triton_kernel, "BLOCK", 8)
    monkeypatch.setattr(triton_kernel, "GRID_BLOCK", 4)
    inputs = SEAM_CASES["ranges above 0, few differences"]() if room is SEAM_LOSSES else POOLING_CASES["sample"]()
    judge(room, to_dtype(inputs, torch.float32))


def test_nothing_is_no_number_unseen():
    """Also in maps of classes that an image does not show: as published, where it is multiplied by 0."""
    for name in ("other_cams", "revised"):
        inputs = to_dtype(SEAM_CASES["the background alone"](), torch.float32)
        inputs[name][0, 2, 1, 1] = float("nan")
        (losses,), grads = run(SEAM_LOSSES.function, inputs, SEAM_LOSSES.differentiable)
        assert losses.isnan().any()
        assert any(grad.isnan().any() for grad in grads.values())
    inputs = to_dtype(POOLING_CASES["no class"](), torch.float32)
    inputs["cams"][1, 2, 1, 1] = float("inf")
    (loss,), grads = run(ADAPTIVE_MIN_POOLING.function, inputs, ("cams",))
    assert loss.isnan()
    assert grads["cams"].isnan().any()
