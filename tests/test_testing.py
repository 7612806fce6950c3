"""The judges are judged: budgets reject wrong kernels and wrong gradients, reference_only really runs the reference."""

import pytest
import torch
from rooms import CLASS_CONTRAST, class_contrast_inputs

from toco_kernels import _library, class_token_contrast
from toco_kernels.class_contrast import reference
from toco_kernels.testing import assert_matches_reference, assert_within_budget, reference_only, run, to_dtype

published = reference.class_token_contrast


def without_the_last_crop(student, teacher, flags, temperature):
    return published(student[: -len(flags)], teacher, flags[:, :-1], temperature)


def without_the_last_channel(student, teacher, flags, temperature):
    return published(student[:, :-1], teacher[:, :-1], flags, temperature)


def with_images_before_crops(student, teacher, flags, temperature):
    batch, crops = flags.shape
    return published(student.view(batch, crops, -1).transpose(0, 1).reshape(student.shape), teacher, flags, temperature)


def in_bfloat16(student, teacher, flags, temperature):
    return published(student.bfloat16(), teacher.bfloat16(), flags, temperature).to(student.dtype)


def slightly_too_large(student, teacher, flags, temperature):
    return published(student, teacher, flags, temperature) * (1 + 1e-5)


WRONG_KERNELS = [
    without_the_last_crop,
    without_the_last_channel,
    with_images_before_crops,
    in_bfloat16,
    slightly_too_large,
]


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.change(grad), None


def first_row_lost(grad):
    return torch.cat([torch.zeros_like(grad[:1]), grad[1:]])


WRONG_GRADIENTS = {
    "sign": lambda grad: -grad,
    "scale": lambda grad: grad * (1 + 1e-5),
    "first row lost": first_row_lost,
    "rows shifted": lambda grad: grad.roll(1, 0),
    "rounded to bfloat16": lambda grad: grad.bfloat16().to(grad.dtype),
    "not finite": lambda grad: torch.full_like(grad, float("inf")),
}


def judge(op, dtype):
    inputs = to_dtype(class_contrast_inputs(), dtype)
    assert_matches_reference(op, published, inputs, differentiable=("student",), terms=CLASS_CONTRAST.terms)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_reference_passes(dtype):
    judge(published, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("wrong", WRONG_KERNELS)
def test_wrong_kernels_are_rejected(wrong, dtype):
    with pytest.raises(AssertionError, match=r"output 0: largest error .* exceeds its budget"):
        judge(wrong, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("change", WRONG_GRADIENTS.values(), ids=WRONG_GRADIENTS)
def test_wrong_gradients_are_rejected(change, dtype):
    def op(student, **others):
        return published(WrongGradient.apply(student, change), **others)

    with pytest.raises(AssertionError, match="grad_student"):
        judge(op, dtype)


def test_many_small_errors_are_rejected():
    """No single element is far off, but the sum of squares is."""
    exact = torch.ones(10_000, dtype=torch.float64)
    eager = exact.clone()
    eager[0] += 1e-6
    actual = (exact + 1.5e-6).float()
    with pytest.raises(AssertionError, match="L2 error"):
        assert_within_budget(actual, exact=exact, eager=eager)


def test_an_overflowing_reference_excuses_nothing():
    exact = torch.tensor([700.0, 2.0], dtype=torch.float64)
    eager = torch.tensor([float("nan"), 2.0])
    assert_within_budget(torch.tensor([700.0, 2.0]), exact=exact, eager=eager)
    with pytest.raises(AssertionError, match="budget"):
        assert_within_budget(torch.tensor([700.1, 2.0]), exact=exact, eager=eager)
    with pytest.raises(AssertionError, match="not finite"):
        assert_within_budget(torch.tensor([float("nan"), 2.0]), exact=exact, eager=eager)


def test_shapes_are_compared():
    with pytest.raises(AssertionError, match="shape"):
        assert_within_budget(torch.ones(1, 3), exact=torch.ones(3).double(), eager=torch.ones(3))


def test_reference_only_replaces_a_wrong_kernel():
    """A kernel that is registered and wrong answers outside the mode, and does not inside."""
    loss = _library.define_loss(
        "wrong_on_purpose(Tensor x, bool with_grad) -> (Tensor, Tensor)",
        room="tests",
        reference=lambda x: x.square().sum(),
    )
    try:
        torch.library.impl("toco_kernels::wrong_on_purpose", "CPU")(lambda x, with_grad: (x.sum(), torch.ones_like(x)))
        inputs = {"x": torch.tensor([1.0, 2.0, 3.0])}
        assert run(loss, inputs, ("x",))[0][0] == 6
        with reference_only():
            outputs, grads = run(loss, inputs, ("x",))
        assert outputs[0] == 14
        cotangent = torch.randn((), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(grads["x"], 2 * inputs["x"] * cotangent.float())
    finally:
        del _library.OPERATORS["wrong_on_purpose"]


def test_reference_only_ends_with_its_block():
    inputs = to_dtype(class_contrast_inputs(), torch.float32)
    before = class_token_contrast(**inputs)
    with reference_only():
        pass
    assert torch.equal(class_token_contrast(**inputs), before)
