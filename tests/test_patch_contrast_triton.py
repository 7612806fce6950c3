"""The Triton kernels of patch_contrast, without a GPU. On a GPU tests/test_contract.py judges them."""

from contextlib import nullcontext

import pytest
import torch
import triton_tools

import toco_kernels
from toco_kernels import _library
from toco_kernels.patch_contrast import reference

pytest.importorskip("triton")

LAUNCHES = """
import torch
from toco_kernels.patch_contrast import triton_kernel
labels, classes = torch.zeros(2, 784, dtype=torch.long), torch.zeros(2, 21, dtype=torch.bool)
scores = torch.zeros(2, 784, 21)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    tokens = torch.zeros(2, 784, 768, dtype=dtype)
    triton_kernel.patch_token_contrast(tokens, labels, None, 255, True)
    if dtype == torch.bfloat16:
        triton_kernel.patch_token_contrast(tokens.mT.contiguous().mT, labels, torch.zeros(2).long(), 255, False)
    for form in ("linear", "log"):
        triton_kernel.patch_contrastive_error(tokens, scores, classes, 0.95, form, True)
torch.backends.cuda.matmul.fp32_precision = "tf32"
triton_kernel.patch_token_contrast(tokens.float(), labels, None, 255, True)
"""


@pytest.mark.slow
def test_interpreted():
    triton_tools.run_interpreted("test_patch_contrast.py")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiled_without_spills(architecture):
    """Blocks are chosen so that registers suffice, and shared memory on the smallest of these GPUs too (8.6).

    On 10.0 two variants of the half-precision kernels miss: 40 bytes in the tiles without gradient, 72 in the float16
    backward. Blocks without them would spill on 8.0, or do with half as many channels.
    """
    usage = triton_tools.compile_for(architecture, LAUNCHES)
    assert len(usage) == 13, sorted(usage)
    for kernel, takes in usage.items():
        spill = 72 if architecture == 100 and kernel.startswith("patch_token_contrast") else 0
        assert takes["stack"] + takes["local"] <= spill, f"{kernel} spills: {takes}"
        assert takes["shared"] <= 99 * 1024, f"{kernel}: {takes}"


@pytest.fixture
def launch(monkeypatch):
    """What `register_triton` hands to the dispatcher, on a machine where Triton works as far as it knows."""
    registered = {}
    monkeypatch.setattr(torch.library, "impl", lambda name, key, function: registered.update({(name, key): function}))
    monkeypatch.setattr(_library, "_triton_cannot_serve", lambda device: "")
    _library.register_triton("patch_token_contrast")
    return registered["toco_kernels::patch_token_contrast", "CUDA"]


def arguments(dtype=torch.float32):
    return torch.randn(2, 9, 5, dtype=dtype), torch.randint(3, (2, 9)), None, 255, False


def test_double_precision_gets_the_reference(launch):
    tokens, labels, *_ = inputs = arguments(torch.float64)
    assert torch.equal(launch(*inputs)[0], reference.patch_token_contrast(tokens, labels, None, 255))


def test_a_gpu_that_triton_cannot_serve_gets_the_reference(launch, monkeypatch):
    monkeypatch.setattr(_library, "_triton_cannot_serve", lambda device: "it is too old")
    tokens, labels, *_ = inputs = arguments()
    assert torch.equal(launch(*inputs)[0], reference.patch_token_contrast(tokens, labels, None, 255))


def test_any_other_call_gets_the_kernel(launch, monkeypatch):
    from toco_kernels.patch_contrast import triton_kernel

    monkeypatch.setattr(triton_kernel, "patch_token_contrast", lambda *args: args)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    inputs = arguments()
    assert launch(*inputs) == inputs


def test_why_not_triton(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert _library.why_not_triton((8, 0)) == ""
    assert _library.why_not_triton((12, 0)) == ""
    assert "8.0, this GPU has 7.5" in _library.why_not_triton((7, 5))
    monkeypatch.setattr(_library, "find_spec", lambda name: None)
    assert _library.why_not_triton((9, 0)) == "Triton is not installed"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _library.why_not_triton((9, 0)) == "the installed torch has no CUDA"


def test_registered_for_cuda():
    for name in ("patch_token_contrast", "patch_contrastive_error"):
        getattr(toco_kernels, name)
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"toco_kernels::{name}", "CUDA")
