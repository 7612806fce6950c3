"""The Triton kernels of dense_energy, without a GPU. On a GPU tests/test_contract.py judges them."""

from contextlib import nullcontext

import pytest
import torch
import triton_tools
from rooms import filter_inputs

from toco_kernels import _library
from toco_kernels.dense_energy import reference

pytest.importorskip("triton")

LAUNCHES = """
import torch
from synchronisations import Synchronisations
from toco_kernels.dense_energy import triton_kernel
image, mask = torch.zeros(2, 3, 224, 224), torch.ones(2, 224, 224)
logits = torch.zeros(2, 21, 448, 448, dtype=torch.bfloat16)
with Synchronisations() as waits:
    for precision in ("none", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = precision
        triton_kernel.exact_filter(torch.zeros(2, 81, 224, 224), image, 15.0, 50.0)
        triton_kernel.exact_crf(logits[..., ::2, ::2].float(), image, 1, [3.0, 3.0], [67.0, 3.0, 4.0])
    for with_grad in (False, True):
        triton_kernel.exact_energy_from_logits(logits, image, mask, mask.bool(), 15.0, 50.0, with_grad)
assert waits.seen == [], waits.seen
"""


@pytest.mark.slow
def test_interpreted():
    triton_tools.run_interpreted("test_dense_energy.py")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiled_without_spills(architecture):
    """Every variant, at the sizes of ToCo; and the operations between the launches wait for nothing."""
    usage = triton_tools.compile_for(architecture, LAUNCHES)
    assert sorted(usage) == ["energy_kernel", "filter_kernel", "halves_kernel", "logits_backward_kernel"]
    for kernel, takes in usage.items():
        assert takes["stack"] + takes["local"] == 0, f"{kernel} spills: {takes}"
        assert takes["shared"] <= 99 * 1024, f"{kernel}: {takes}"


def test_registered_for_cuda():
    for name in ("exact_energy", "exact_energy_from_logits", "exact_filter", "exact_crf"):
        getattr(torch.ops.toco_kernels, name)
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"toco_kernels::{name}", "CUDA")
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(
            f"toco_kernels::{name.replace('exact', 'lattice')}", "CUDA"
        )


@pytest.fixture
def launch(monkeypatch):
    """What `register_triton` hands to the dispatcher, on a machine where Triton works as far as it knows."""
    registered = {}
    monkeypatch.setattr(torch.library, "impl", lambda name, key, function: registered.update({(name, key): function}))
    monkeypatch.setattr(_library, "_triton_cannot_serve", lambda device: "")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    _library.register_triton("exact_filter")
    return registered["toco_kernels::exact_filter", "CUDA"]


def test_double_precision_gets_the_reference(launch):
    inputs = filter_inputs("exact")
    expected = reference.bilateral_filter(inputs["image"], inputs["values"], 15.0, 5.0, "exact")
    assert torch.equal(launch(inputs["values"], inputs["image"], 15.0, 5.0), expected)


def test_autocast_does_not_reach_into_the_kernel(launch, monkeypatch):
    """Its matrix products, resizing and softmax are PyTorch's, and would come out in half precision."""
    from toco_kernels.dense_energy import triton_kernel

    monkeypatch.setattr(triton_kernel, "exact_filter", lambda *_: torch.ones(2, 2) @ torch.ones(2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert launch(torch.ones(1, 1, 2, 2), torch.ones(1, 3, 2, 2), 15.0, 5.0).dtype == torch.float32
