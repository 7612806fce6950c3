"""The Triton kernels of affinity_propagate, without a GPU. On a GPU tests/test_contract.py judges them."""

import pytest
import torch
import triton_tools

import toco_kernels

pytest.importorskip("triton")

LAUNCHES = """
import torch
from test_contract import Synchronisations
from toco_kernels.affinity_propagate import triton_kernel
def propagate(dtype, sinkhorn):
    queries, keys = torch.zeros(2, 12, 784, 64, dtype=dtype), torch.zeros(2, 12, 785, 64, dtype=dtype)
    triton_kernel.propagate_attention(torch.zeros(2, 20, 784, dtype=dtype), queries, keys, 1, sinkhorn)
with Synchronisations() as waits:
    propagate(torch.float32, 1)
    propagate(torch.bfloat16, 0)
    triton_kernel.random_walk(torch.zeros(2, 1, 94, 125), torch.zeros(2, 20, 94, 125), 5, 8.0, 1)
assert waits.seen == [], waits.seen
"""
LARGEST = """
import torch
from toco_kernels.affinity_propagate.triton_kernel import _Attention
attention = _Attention.of(torch.zeros(2, 12, 784, 64), torch.zeros(2, 12, 785, 64))
attention.maps(torch.zeros(2, 20, 784), by_keys=True)
"""
KERNELS = ["affinity_kernel", "gather_kernel", "softmax_kernel", "sums_kernel", "sums_of_weights_kernel", "walk_kernel"]


@pytest.mark.slow
def test_interpreted():
    triton_tools.run_interpreted("test_affinity_propagate.py")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiled_without_spills(architecture):
    """On 8.0 all kernels, and the operations between the launches wait for nothing; elsewhere what takes the most.

    Blocks have shared memory enough on the smallest of these GPUs too (8.6).
    """
    usage = triton_tools.compile_for(architecture, LAUNCHES if architecture == 80 else LARGEST)
    assert sorted(usage) == (KERNELS if architecture == 80 else ["gather_kernel", "softmax_kernel"])
    for kernel, takes in usage.items():
        assert takes["stack"] + takes["local"] == 0, f"{kernel} spills: {takes}"
        assert takes["shared"] <= 99 * 1024, f"{kernel}: {takes}"


def test_registered_for_cuda():
    for name in ("propagate_attention", "random_walk"):
        getattr(toco_kernels, name)
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"toco_kernels::{name}", "CUDA")
