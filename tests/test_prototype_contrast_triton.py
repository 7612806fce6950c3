"""The Triton kernels of prototype_contrast, without a GPU. On a GPU tests/test_contract.py judges them."""

import pytest
import torch
import triton_tools

import toco_kernels

pytest.importorskip("triton")

LAUNCHES = """
import torch
from toco_kernels.prototype_contrast import triton_kernel
labels = torch.zeros(2, 3136, dtype=torch.long)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    features = torch.zeros(2, 128, 3136, dtype=dtype)
    for classes in (21, 81):
        triton_kernel.prototype_contrast(features, labels, torch.zeros(classes, 128), 0.1, 255, True)
    triton_kernel.prototype_contrast(features, labels, torch.zeros(21, 128), 0.1, 255, False)
triton_kernel.resize_corners_backward(torch.zeros(2, 128, 16, 16), [56, 56])
torch.backends.cuda.matmul.fp32_precision = "tf32"
triton_kernel.prototype_contrast(features.float(), labels, torch.zeros(21, 128), 0.1, 255, True)
"""


@pytest.mark.slow
def test_interpreted():
    triton_tools.run_interpreted("test_prototype_contrast.py")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiled_without_spills(architecture):
    """Blocks are chosen so that registers suffice, and shared memory on the smallest of these GPUs too (8.6)."""
    usage = triton_tools.compile_for(architecture, LAUNCHES)
    assert sorted(usage) == ["contrast_kernel", "count_kernel", "mean_kernel", "resize_backward_kernel"]
    for kernel, takes in usage.items():
        spilled = 8 if architecture == 100 else 0  # two registers, with 81 classes, of Triton 3.8
        assert takes["stack"] + takes["local"] <= spilled, f"{kernel} spills: {takes}"
        assert takes["shared"] <= 99 * 1024, f"{kernel}: {takes}"


def test_registered_for_cuda():
    for name in ("prototype_contrast", "pixel_prototype_contrast", "resize_corners_backward"):
        assert toco_kernels.prototype_contrast  # loads the room
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"toco_kernels::{name}", "CUDA")
