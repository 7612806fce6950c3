"""The Triton kernels of pair_contrast, without a GPU. On a GPU tests/test_contract.py judges them."""

import pytest
import torch
import triton_tools

import toco_kernels

pytest.importorskip("triton")

LAUNCHES = """
import torch
from toco_kernels.pair_contrast import triton_kernel
labels, queue_labels = torch.zeros(2, 784, dtype=torch.long), torch.zeros(2, 1000, dtype=torch.long)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    x, y = torch.zeros(2, 784, 256, dtype=dtype), torch.zeros(2, 1000, 256, dtype=dtype)
    triton_kernel.affinity_loss(x, labels, 28, 8, 1.0, False, False, 255, True)
    triton_kernel.affinity_loss(x.mT.contiguous().mT, labels, 28, 8, 3.0, True, True, 255, True)
for form in ("abs_cos", "sigmoid", "info_nce"):
    triton_kernel.contrast(x.float(), y.float(), labels, queue_labels, form, 1.0, True, 255, True, True)
triton_kernel.contrast(x, y, labels, queue_labels, "info_nce", 1.0, True, 255, False, False)
triton_kernel.affinity_loss(x, labels, 0, -1, 1.0, False, False, 255, False)
torch.backends.cuda.matmul.fp32_precision = "tf32"
triton_kernel.affinity_loss(x.float(), labels, 0, -1, 1.0, False, False, 255, True)
"""


@pytest.mark.slow
def test_interpreted():
    triton_tools.run_interpreted("test_pair_contrast.py")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiled_without_spills(architecture):
    """Blocks are chosen so that registers suffice, and shared memory on the smallest of these GPUs too (8.6)."""
    usage = triton_tools.compile_for(architecture, LAUNCHES)
    kernels = ["anchors_backward_kernel", "anchors_kernel", "count_kernel", "finish_kernel", "pairs_kernel"]
    assert sorted(usage) == [*kernels, "rows_kernel", "sum_kernel", "weights_kernel"]
    for kernel, takes in usage.items():
        assert takes["stack"] + takes["local"] == 0, f"{kernel} spills: {takes}"
        assert takes["shared"] <= 99 * 1024, f"{kernel}: {takes}"


def test_registered_for_cuda():
    for name in ("affinity_loss", "contrast"):
        getattr(toco_kernels, name)
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"toco_kernels::{name}", "CUDA")
