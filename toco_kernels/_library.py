"""The one place where operators meet PyTorch's dispatcher.

`define` and `define_loss` register an operator's reference for every device. Built kernels register themselves under
their own dispatch key when their library is loaded, and the dispatcher prefers them. There is no other choice of
implementation anywhere in the package.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor
from torch.autograd import forward_ad

NAMESPACE = "toco_kernels"
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Operator:
    """One operator: what runs where no kernel is registered, and the overload that dispatches."""

    room: str
    reference: Callable
    overload: torch._ops.OpOverload


OPERATORS: dict[str, Operator] = {}
NOT_LOADED: dict[str, str] = {}  # library -> why


def build_info() -> dict:
    """What CMake wrote when the package was built; empty for a checkout that was never built."""
    file = _HERE / "_build.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _why_not(library: str) -> str:
    """Why this library cannot be used here, or '' when it can."""
    if not (_HERE / f"{library}.so").exists():
        return build_info().get("missing", {}).get(library) or "not built: this checkout was never installed"
    if library == "_torch_cuda":
        if torch.version.cuda is None:
            return "the installed torch has no CUDA"
        built, ours = build_info().get("nvcc", ""), torch.version.cuda
        if built and int(built.split(".")[0]) > int(ours.split(".")[0]):
            return f"built with CUDA {built}, but torch has CUDA {ours}, whose drivers may be too old for it"
    return ""


def _load(library: str) -> None:
    why = _why_not(library)
    if not why:
        try:
            torch.ops.load_library(_HERE / f"{library}.so")
        except OSError as error:
            why = f"could not be loaded: {error}"
            warnings.warn(
                f"toco_kernels: {library} {why}. Operators run their slower reference.", RuntimeWarning, stacklevel=2
            )
    if why:
        NOT_LOADED[library] = why


_load("_torch_cpu")
_load("_torch_cuda")


def define(schema: str, *, room: str, reference: Callable, fake: Callable) -> torch._ops.OpOverload:
    """Define `toco_kernels::<schema>`: `reference` runs on any device that has no kernel.

    Operators decide themselves in which precision they compute, so autocast does not reach into the reference.
    """
    op, arguments = schema.split("(", 1)
    reference = _without_autocast(reference)
    name = f"{NAMESPACE}::{op}"
    torch.library.define(name, "(" + arguments)
    torch.library.impl(name, "CompositeExplicitAutograd", reference)
    torch.library.register_fake(name, fake)
    overload = getattr(getattr(torch.ops, NAMESPACE), op).default
    OPERATORS[op] = Operator(room, reference, overload)
    return overload


def _without_autocast(function: Callable) -> Callable:
    @wraps(function)
    def without_autocast(x: Tensor | list[Tensor], *args):
        device = (x if isinstance(x, Tensor) else x[0]).device
        with torch.autocast(device.type, enabled=False):
            return function(x, *args)

    return without_autocast


def register_triton(op: str) -> None:
    """Register `<room>/triton_kernel.py`'s function of this name for CUDA; it is imported by the first call.

    Double precision, and GPUs that Triton cannot serve, get the reference. Autocast does not reach into either.
    """
    operator = OPERATORS[op]

    def launch(x: Tensor, *args):
        if x.dtype == torch.float64 or _triton_cannot_serve(x.device.index):
            return operator.reference(x, *args)
        kernel = import_module(f".{operator.room}.triton_kernel", __package__)
        with torch.cuda.device(x.device):
            return getattr(kernel, op)(x, *args)

    torch.library.impl(f"{NAMESPACE}::{op}", "CUDA", _without_autocast(launch))


@cache
def _triton_cannot_serve(device: int) -> str:
    return why_not_triton(torch.cuda.get_device_capability(device))


def why_not_triton(capability: tuple[int, int]) -> str:
    """Why Triton kernels cannot run on a GPU of this compute capability, or '' when they can."""
    if torch.version.cuda is None:
        return "the installed torch has no CUDA"
    if not find_spec("triton"):
        return "Triton is not installed"
    if capability < (8, 0):
        return f"Triton needs compute capability 8.0, this GPU has {'.'.join(map(str, capability))}"
    return ""


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and losses: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


_OUTSIDE = (
    torch._C._dispatch_tls_local_include_set(),
    torch._C._dispatch_tls_local_exclude_set()
    .add(torch._C.DispatchKey.AutocastCPU)
    .add(torch._C.DispatchKey.AutocastCUDA),
)


def differentiate(function: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor | None = None):
    """The value of `function` at `x`, and its gradient by autograd, inside an operator.

    There autograd is switched off, by the dispatcher or by a mode that watches it. The guard switches on what is on
    outside of operators, autocast excepted.
    """
    with torch._C._ForceDispatchKeyGuard(*_OUTSIDE), torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x)
        if not value.requires_grad:  # a loss over nothing is a constant
            return value, torch.zeros_like(x)
        (grad,) = torch.autograd.grad(value, x, cotangent)
    return value.detach(), grad.contiguous()


def refuse_forward_ad(who: str, *tensors: Tensor | None) -> None:
    """Raise if one of them carries a tangent, which an operator would silently drop: only an autograd.Function looks.

    `who` and its verb, "losses have", begin the message.
    """
    if forward_ad._current_level < 0:
        return
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise RuntimeError(f"toco_kernels: {who} no forward-mode derivative; use backward()")


def define_loss(schema: str, *, room: str, reference: Callable, inputs: int = 1) -> Callable[..., Tensor]:
    """Define a loss operator `op(x, …, bool with_grad) -> (Tensor loss, Tensor grad)`; return it as `loss(x, …)`.

    The loss is a scalar, differentiable in its first argument alone. Its gradient is computed beside it, in one pass,
    and the backward only scales it. It is kept in float32 for half-precision inputs until that scale is known: a
    float16 gradient computed before loss scaling could underflow. `reference(x, …)` returns the loss; where no kernel
    is registered, it computes in float32 for half-precision inputs too, and its gradient comes from autograd.

    With `inputs=2` it is differentiable in its first two arguments, computes the gradients that are asked for, and is
    `op(x, y, …, bool with_grad_x, bool with_grad_y) -> (Tensor loss, Tensor grad_x, Tensor grad_y)`.
    """

    def loss_and_grads(*args):
        args, wanted = args[:-inputs], args[-inputs:]
        dtype = accumulate_dtype(args[0].dtype)
        args = [a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        value, grads = None, [x.new_empty(0) for x in args[:inputs]]
        for i in range(inputs):
            if wanted[i]:
                value, grads[i] = differentiate(lambda x, i=i: reference(*args[:i], x, *args[i + 1 :]), args[i])
        return reference(*args) if value is None else value, *grads

    def fake(*args):
        dtype, wanted = accumulate_dtype(args[0].dtype), args[-inputs:]
        grads = [x.new_empty(x.shape if w else 0, dtype=dtype) for x, w in zip(args, wanted, strict=False)]
        return args[0].new_empty((), dtype=dtype), *grads

    overload = define(schema, room=room, reference=loss_and_grads, fake=fake)

    def loss(x: Tensor, *args) -> Tensor:
        args = x, *args
        refuse_forward_ad("losses have", *args[:inputs])
        wanted = tuple(x.requires_grad and torch.is_grad_enabled() for x in args[:inputs])
        if not any(wanted):
            return overload(*args, *wanted)[0]
        return _Loss.apply(overload, *args) if inputs == 1 else _LossOfTwo.apply(overload, wanted, *args)

    return loss


class _Loss(torch.autograd.Function):
    """A loss operator with its gradient.

    An autograd.Function around the operator, not `register_autograd` on it: losses on class tokens take microseconds,
    and the registered formula costs 23 of them more per training step than this (87 against 110, measured). The
    gradient is scaled in place: making a second tensor of its size costs more than the multiplication.

    Until the first backward the gradient is kept on `ctx`, and not among its saved tensors, which nobody may write to:
    hooks on those (`torch.autograd.graph.save_on_cpu`, `saved_tensors_hooks`) move `x` elsewhere and the gradient not.
    """

    @staticmethod
    def forward(ctx, overload, x: Tensor, *args) -> Tensor:
        loss, grad = overload(x, *args, True)
        ctx.save_for_backward(x)
        ctx.overload, ctx.args, ctx.grad = overload, args, grad
        if not torch.compiler.is_compiling():  # a compiled graph scales out of place, and never needs `args` again
            ctx.versions = _versions(args)
        return loss

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        (x,) = ctx.saved_tensors
        grad, ctx.grad = ctx.grad, None
        if grad is None:  # a retained graph: the first backward has scaled it in place
            _check_unchanged(ctx)
            _, grad = ctx.overload(x, *ctx.args, True)
        if _is_batched(grad_loss):  # is_grads_batched=True: the result does not fit into the memory of one gradient
            ctx.grad = grad
        return None, _scaled(grad, grad_loss, x), *[None] * len(ctx.args)


class _LossOfTwo(torch.autograd.Function):
    """The same for a loss operator with two gradients, of which those that are `wanted` are computed."""

    @staticmethod
    def forward(ctx, overload, wanted: tuple[bool, bool], x: Tensor, y: Tensor, *args) -> Tensor:
        loss, *grads = overload(x, y, *args, *wanted)
        ctx.save_for_backward(x, y)
        ctx.overload, ctx.wanted, ctx.args, ctx.grads = overload, wanted, args, grads
        if not torch.compiler.is_compiling():
            ctx.versions = _versions(args)
        return loss

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        x, y = ctx.saved_tensors
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            _check_unchanged(ctx)
            _, *grads = ctx.overload(x, y, *ctx.args, *ctx.wanted)
        if _is_batched(grad_loss):
            ctx.grads = grads
        grad_x = _scaled(grads[0], grad_loss, x) if ctx.wanted[0] else None
        grad_y = _scaled(grads[1], grad_loss, y) if ctx.wanted[1] else None
        return None, None, grad_x, grad_y, *[None] * len(ctx.args)


def _scaled(grad: Tensor, grad_loss: Tensor, x: Tensor) -> Tensor:
    """The gradient in `x` times the one that arrives at the loss, in the memory of `grad` unless that is several."""
    grad = grad * grad_loss if _is_batched(grad_loss) else grad.mul_(grad_loss)
    grad = grad.to(x.dtype)
    if torch.is_grad_enabled():  # create_graph=True
        grad = no_second_derivative("losses have", grad, x)
    return grad


def _is_batched(tensor: Tensor) -> bool:
    """Whether this is several tensors in the shape of one."""
    return not torch.compiler.is_compiling() and (is_legacy_batchedtensor(tensor) or is_batchedtensor(tensor))


def _versions(args: tuple) -> list[int | None]:
    """How often each argument was written to; None where nobody counts, as for tensors of the inference mode."""
    return [a._version if isinstance(a, Tensor) and not a.is_inference() else None for a in args]


def _check_unchanged(ctx) -> None:
    """The operator can run on its arguments again only if they are what they were. Autograd itself watches `x`."""
    declared = ctx.overload._schema.arguments[len(ctx.saved_tensors) :][: len(ctx.args)]
    for argument, before, now in zip(declared, ctx.versions, _versions(ctx.args), strict=True):
        if before != now:
            raise RuntimeError(
                "toco_kernels: one of the variables needed for gradient computation has been modified by an inplace "
                f"operation: {argument.name} is at version {now}; expected version {before} instead. A second backward "
                "through a retained graph computes the gradient again, from the arguments of the loss"
            )


def no_second_derivative(who: str, grad: Tensor, x: Tensor) -> Tensor:
    """`grad`, tied to `x` so that a second derivative raises instead of missing a term. `who` and its verb, "losses
    have", begin the message.
    """
    return _NoSecondDerivative.apply(grad, x, who)


class _NoSecondDerivative(torch.autograd.Function):
    """The identity in `grad`."""

    @staticmethod
    def forward(ctx, grad: Tensor, x: Tensor, who: str) -> Tensor:
        ctx.who = who
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(f"toco_kernels: {ctx.who} no second derivative")
