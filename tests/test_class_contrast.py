"""What is particular to class_contrast; the rest is in test_contract.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rooms import CLASS_CONTRAST, class_contrast_inputs, needs_kernel
from torch import nn

import toco_kernels
import toco_kernels.numpy
from toco_kernels import ClassTokenContrastLoss, class_token_contrast, compat, update_ema_
from toco_kernels.class_contrast import reference

GOLDEN = Path(__file__).parent / "golden" / "class_token_contrast.npz"


@pytest.fixture
def golden():
    """What the authors' code returns."""
    arrays = np.load(GOLDEN)
    inputs = {name: torch.from_numpy(arrays[name]) for name in ("student", "teacher", "flags")}
    return inputs | {"temperature": float(arrays["temperature"])}, arrays["loss"].item(), arrays["grad_student"]


@pytest.mark.parametrize("function", [class_token_contrast, reference.class_token_contrast])
def test_golden(golden, function, device):
    inputs, loss, grad = golden
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    student = inputs["student"].requires_grad_()
    actual = function(**inputs)
    actual.backward()
    assert actual.item() == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(student.grad.cpu(), grad, rtol=1e-12, atol=1e-16)


def test_golden_numpy(golden):
    inputs, loss, grad = golden
    arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    for threads in (1, 2):
        actual, actual_grad = toco_kernels.numpy.class_token_contrast(**arrays, threads=threads)
        assert actual == pytest.approx(loss, rel=1e-14)
        np.testing.assert_allclose(actual_grad, grad, rtol=1e-12, atol=1e-16)


def test_numpy_without_its_extension(golden, monkeypatch):
    monkeypatch.setattr(toco_kernels.numpy, "_numpy", None)
    test_golden_numpy(golden)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("student", [[1.0]]),
        ("student", np.ones((20, 8), np.float16)),
        ("student", np.ones((19, 8), np.float32)),
        ("teacher", np.ones((4, 8), np.float64)),
        ("teacher", np.ones((4, 7), np.float32)),
        ("flags", np.ones(10)),
        ("temperature", 0),
        ("threads", 0),
    ],
)
def test_numpy_bad_arguments_are_named(argument, value):
    arrays = {
        "student": np.ones((20, 8), np.float32),
        "teacher": np.ones((4, 8), np.float32),
        "flags": np.ones((2, 10)),
        "temperature": 0.5,
        "threads": 1,
    }
    toco_kernels.numpy.class_token_contrast(**arrays)
    with pytest.raises((TypeError, ValueError), match=rf"^{argument} must .+, got .+"):
        toco_kernels.numpy.class_token_contrast(**arrays | {argument: value})


def test_logits_that_overflow_the_published_form(device):
    """At logits in the hundreds the published float32 code returns NaN; ours still has the float64 value."""
    needs_kernel(CLASS_CONTRAST, device)
    inputs = class_contrast_inputs(2, 6, 64, scale=40.0, temperature=0.4)
    exact = reference.class_token_contrast(**inputs)
    inputs = {k: v.float().to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    assert not reference.class_token_contrast(**inputs).isfinite()
    assert class_token_contrast(**inputs).item() == pytest.approx(exact.item(), rel=1e-5)


def test_float16_gradients_survive_small_scales(device):
    """The gradient is scaled before it is rounded to float16, so loss scaling works: 1e-9 * 2^16 is representable."""
    inputs = class_contrast_inputs(1, 4, 8, scale=1.0)
    inputs = {k: v.half().to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    student = inputs["student"].requires_grad_()
    (plain,) = torch.autograd.grad(class_token_contrast(**inputs), student)
    (scaled,) = torch.autograd.grad(class_token_contrast(**inputs) * 2.0**-20 * 2.0**20, student)
    torch.testing.assert_close(plain, scaled, rtol=0, atol=0)


def test_mixed_dtypes_are_promoted(device):
    """Under autocast a head returns half precision while the averaged teacher may not."""
    inputs = class_contrast_inputs()
    student, teacher = inputs["student"].half().to(device).requires_grad_(), inputs["teacher"].float().to(device)
    loss = class_token_contrast(student, teacher, inputs["flags"].to(device), temperature=0.5)
    expected = class_token_contrast(student.detach().float(), teacher, inputs["flags"].to(device), temperature=0.5)
    assert torch.equal(loss, expected)
    loss.backward()
    assert student.grad.dtype == torch.float16


def test_module(device):
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in class_contrast_inputs().items()}
    temperature = inputs.pop("temperature")
    module = ClassTokenContrastLoss(temperature)
    assert torch.equal(module(**inputs), class_token_contrast(**inputs, temperature=temperature))
    assert repr(module) == "ClassTokenContrastLoss(temperature=0.5)"
    with pytest.raises(ValueError, match=r"^temperature must be positive, got -1"):
        ClassTokenContrastLoss(-1)


def test_compat(golden, device):
    """The published name, argument order and defaults; flags may lie elsewhere, the teacher may carry a graph."""
    inputs, loss, _ = golden
    criterion = compat.CTCLoss_neg(10, 0.5)
    teacher = inputs["teacher"].to(device).requires_grad_()
    actual = criterion(inputs["student"].to(device), teacher, inputs["flags"])
    assert actual.item() == pytest.approx(loss, rel=1e-14)
    assert (compat.CTCLoss_neg().ncrops, compat.CTCLoss_neg().temp) == (10, 1.0)
    assert list(criterion.state_dict()) == []


def heads():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3, bias=False)) for _ in range(2)]


@pytest.mark.parametrize("momentum", [0, 0.9, 1])
def test_update_ema(momentum, device):
    teacher, student = (head.to(device) for head in heads())
    student[1].running_mean += 1
    before = {name: parameter.clone() for name, parameter in teacher.named_parameters()}
    update_ema_(teacher, student, momentum)
    for name, parameter in student.named_parameters():
        expected = momentum * before[name] + (1 - momentum) * parameter
        torch.testing.assert_close(dict(teacher.named_parameters())[name], expected)
    assert (teacher[1].running_mean == 0).all(), "buffers stay"
    assert all(parameter.grad_fn is None for parameter in teacher.parameters())


def test_update_ema_bad_arguments():
    teacher, student = heads()
    with pytest.raises(ValueError, match=r"^momentum must be in \[0, 1\], got 1.1"):
        update_ema_(teacher, student, 1.1)
    with pytest.raises(ValueError, match=r"^teacher must have parameters .*, got .*2.weight"):
        update_ema_(teacher[:2], student, 0.9)
    with pytest.raises(ValueError, match=r"^teacher must have parameters .*, got .*0.weight"):
        update_ema_(nn.Sequential(nn.Linear(5, 8), *teacher[1:]), student, 0.9)
