"""The Triton kernels of cam_regularization, without a GPU. On a GPU tests/test_contract.py judges them."""

import pytest
import torch
import triton_tools

import toco_kernels

pytest.importorskip("triton")

LAUNCHES = """
import torch
from synchronisations import Synchronisations
from toco_kernels.cam_regularization import triton_kernel
first, second = [448, 448], [128, 128]
with Synchronisations() as waits:
    for classes in (21, 81):
        maps, other = torch.zeros(2, classes, 56, 56), torch.zeros(2, classes, 16, 16)
        labels = torch.zeros(2, classes - 1)
        triton_kernel.equivariant_loss(maps, other, labels, first, second, second, True, True)
        triton_kernel.cross_equivariant_loss(maps, other, labels, first, second, second, 50_000, True)
        triton_kernel.cross_equivariant_loss(other, maps, labels, [16, 16], [56, 56], [16, 16], 500, True)
        triton_kernel.min_pooling_loss(maps[:, 1:], labels, first, True)
assert waits.seen == [], waits.seen
"""


@pytest.mark.slow
def test_interpreted():
    triton_tools.run_interpreted("test_cam_regularization.py")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiled_without_spills(architecture):
    """At the sizes of SEAM and of EPS; and the operations between the launches wait for nothing."""
    usage = triton_tools.compile_for(architecture, LAUNCHES)
    assert sorted(usage) == [
        "compared_backward_kernel",
        "compared_kernel",
        "range_kernel",
        "range_slopes_kernel",
        "shown_backward_kernel",
        "shown_kernel",
    ]
    for kernel, takes in usage.items():
        assert takes["stack"] + takes["local"] == 0, f"{kernel} spills: {takes}"
        assert takes["shared"] <= 99 * 1024, f"{kernel}: {takes}"


def test_registered_for_cuda():
    for name in ("equivariant_loss", "cross_equivariant_loss", "min_pooling_loss"):
        assert toco_kernels.seam_losses  # loads the room
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"toco_kernels::{name}", "CUDA")
