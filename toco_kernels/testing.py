"""How right is right: error budgets judged against float64, and a mode in which every operator runs its reference.

    error(ours) <= 2 * error(reference in float32) + one rounding of the output's dtype

both errors taken against the reference in float64, on the same inputs (already rounded, when they are half precision),
as the largest deviation and in L2. So no tolerance is tuned by hand, and a kernel may reorder sums but not lose digits.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ._library import OPERATORS

SLACK = 2.0


class reference_only(TorchFunctionMode):
    """Inside `with reference_only():` every operator of this package runs its reference, on every device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        for operator in OPERATORS.values():
            if func in (operator.overload, operator.overload.overloadpacket):
                func = operator.reference
        return func(*args, **kwargs or {})


def assert_within_budget(
    actual: Tensor,
    *,
    exact: Tensor,
    eager: Tensor | Callable[[], Tensor],
    terms: int = 1,
    magnitude: float = 0.0,
    by_chance: bool = False,
    what: str = "the output",
) -> None:
    """Assert that `actual` is about as good as eager PyTorch.

    Args:
        actual: what is judged.
        exact: the reference in float64 on the same inputs.
        eager: the reference in float32 on the same inputs (in float64 for a float64 `actual`). Where it overflows, it
            excuses nothing. A function that computes it is called only where `actual` needs an excuse.
        terms: how many products the largest sum behind an output adds; only float64 needs it, since there nothing
            better exists to compare with: its budget is 4 * sqrt(terms) roundings.
        magnitude: of the reference's intermediate results, where they are larger than the output; again for float64.
        by_chance: allow float32 what float64 is allowed, beside the error of `eager`: with few values that is small by
            chance, and one right kernel in a hundred is not within twice of it.
        what: names the tensor in messages.
    """
    assert exact.dtype == torch.float64, f"exact must be float64, got {exact.dtype}"
    assert actual.shape == exact.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    finite = exact.isfinite()
    assert torch.equal(actual.isfinite(), finite), f"{what}: not finite where the reference is, or the reverse"

    limits = torch.finfo(actual.dtype)
    actual, exact, precision = actual[finite].double(), exact[finite], limits.eps
    subnormal = torch.full_like(exact, limits.smallest_normal * precision / 2)  # float16 rounds 1e-7 to 1.19e-7
    rounding, floor = precision, 0.0
    sums = 0.0  # what sums of so many terms may lose, in the precision they are computed in
    if precision == torch.finfo(torch.float64).eps or by_chance:
        computed_in = min(precision, torch.finfo(torch.float32).eps)
        rounding = 0.0 if computed_in == precision else precision
        sums, floor = 4 * math.sqrt(terms) * computed_in, magnitude * math.sqrt(max(1, exact.numel()))
    for name, norm in (("largest", lambda x: x.abs().max() if x.numel() else x.sum()), ("L2", torch.linalg.norm)):
        error = norm(actual - exact).item()
        budget = norm(subnormal).item() + rounding * norm(exact).item() + sums * max(norm(exact).item(), floor)
        if error > budget:
            eager = eager() if callable(eager) else eager
            of_eager = eager[finite].double() - exact
            budget += SLACK * norm(of_eager[of_eager.isfinite()]).item()
        assert error <= budget, f"{what}: {name} error {error:.3e} exceeds its budget {budget:.3e}"


def assert_labels_match(
    actual: Tensor,  # (B, H, W)
    expected: Tensor,  # (B, H, W)
    *,
    exact: list[Tensor] | Callable[[], list[Tensor]],  # float64 scores (C, H, W); as many for each image
    eager: list[Tensor] | Callable[[], list[Tensor]],  # the same in float32
) -> None:
    """Assert that labels differ from `expected` only where float32 cannot tell which score is the larger.

    That is where the two largest of the exact scores are closer than twice the largest error of the eager ones.
    Functions that compute them are called only where a label differs.
    """
    assert actual.dtype == expected.dtype, f"labels are {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if torch.equal(actual, expected):
        return
    exact, eager = (scores() if callable(scores) else scores for scores in (exact, eager))
    runs = len(exact) // max(len(actual), 1)
    for b in range(len(actual)):
        wrong = actual[b] != expected[b]
        if not wrong.any():
            continue
        for scores, rounded in zip(exact[runs * b : runs * (b + 1)], eager[runs * b : runs * (b + 1)], strict=True):
            error = SLACK * (rounded - scores).abs().max().item() + torch.finfo(torch.float32).eps
            if len(scores) > 1:
                first, second = scores.topk(2, dim=0).values
                wrong &= first - second > error
        assert not wrong.any(), f"image {b}: {wrong.sum().item()} labels are wrong, beyond doubt"


def run(
    op: Callable, inputs: Mapping, differentiable: tuple[str, ...], *, rounded: bool = False
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Call `op(**inputs)`; return its outputs, and the gradients of `differentiable` for fixed random cotangents.

    `rounded` cotangents are the same in every dtype.
    """
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in differentiable}
    outputs = op(**{**inputs, **leaves})
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    differentiated = [output for output in outputs if output.requires_grad]
    if not differentiated:  # a loss over nothing is a constant
        return outputs, {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in differentiated]
    if rounded:  # to eighths, which half precision holds too
        cotangents = [(x * 8).round() / 8 for x in cotangents]
    cotangents = [cotangent.to(x) for cotangent, x in zip(cotangents, differentiated, strict=True)]
    grads = torch.autograd.grad(differentiated, [*leaves.values()], cotangents, materialize_grads=True)
    return outputs, dict(zip(leaves, grads, strict=True))


def change_tensors(inputs: Mapping, change: Callable[[Tensor], Tensor]) -> dict:
    """`inputs` with every tensor changed, also those in lists."""

    def changed(value):
        if isinstance(value, list):
            return [changed(item) for item in value]
        return change(value) if isinstance(value, Tensor) else value

    return {name: changed(value) for name, value in inputs.items()}


def to_dtype(inputs: Mapping, dtype: torch.dtype) -> dict:
    """`inputs` with every floating-point tensor in `dtype`."""
    return change_tensors(inputs, lambda x: x.to(dtype) if x.is_floating_point() else x)


def assert_matches_reference(
    op: Callable,
    reference: Callable,
    inputs: Mapping,  # keyword arguments of both
    *,
    differentiable: tuple[str, ...] = (),
    terms: int = 1,
    magnitude: float = 0.0,
    by_chance: bool = False,
) -> None:
    """Assert that `op` and its gradients keep the budget against `reference`, in the dtype of `inputs`."""
    outputs, grads = run(op, inputs, differentiable, rounded=by_chance)
    dtype = next(iter(grads.values()), outputs[0]).dtype
    computed_in = torch.float64 if dtype == torch.float64 else torch.float32
    exact_outputs, exact_grads = run(reference, to_dtype(inputs, torch.float64), differentiable, rounded=by_chance)

    @cache
    def eager():
        return run(reference, to_dtype(inputs, computed_in), differentiable, rounded=by_chance)

    sizes = {"terms": terms, "magnitude": magnitude, "by_chance": by_chance}
    for i, output in enumerate(outputs):
        excuse = partial(lambda i: eager()[0][i], i)
        assert_within_budget(output, exact=exact_outputs[i], eager=excuse, what=f"output {i}", **sizes)
    for name, grad in grads.items():
        excuse = partial(lambda name: eager()[1][name], name)
        assert_within_budget(grad, exact=exact_grads[name], eager=excuse, what=f"grad_{name}", **sizes)
