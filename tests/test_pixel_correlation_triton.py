"""The Triton kernels of pixel_correlation, without a GPU. On a GPU tests/test_contract.py judges them."""

import pytest
import torch
import triton_tools

import toco_kernels

pytest.importorskip("triton")

LAUNCHES = """
import torch
from synchronisations import Synchronisations
from toco_kernels.pixel_correlation import triton_kernel
with Synchronisations() as waits:
    for dtype, classes in ((torch.float32, 21), (torch.bfloat16, 81)):
        features, cams = torch.zeros(2, 192, 3136, dtype=dtype), torch.zeros(2, classes, 3136, dtype=dtype)
        maps, *kept = triton_kernel.pixel_correlation(features, cams, True)
        triton_kernel.pixel_correlation_backward(maps, features, cams, maps, *kept)
assert waits.seen == [], waits.seen
"""


@pytest.mark.slow
def test_interpreted():
    triton_tools.run_interpreted("test_pixel_correlation.py")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiled_without_spills(architecture):
    """At SEAM's size and with COCO's classes; and the operations between the launches wait for nothing."""
    usage = triton_tools.compile_for(architecture, LAUNCHES)
    assert sorted(usage) == [
        "correlate_backward_kernel",
        "correlate_kernel",
        "lengths_backward_kernel",
        "norms_kernel",
    ]
    for kernel, takes in usage.items():
        assert takes["stack"] + takes["local"] == 0, f"{kernel} spills: {takes}"
        assert takes["shared"] <= 99 * 1024, f"{kernel}: {takes}"


def test_registered_for_cuda():
    for name in ("pixel_correlation", "pixel_correlation_backward"):
        assert toco_kernels.pixel_correlation  # loads the room
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"toco_kernels::{name}", "CUDA")
