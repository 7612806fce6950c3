"""Whether two calls had the same outcome, within what a replacement promises."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from .registry import Approximate, Exact, Stochastic

ROUNDINGS = 4  # of half precision or TF32


@dataclass(frozen=True)
class Outcome:
    """All that a call did."""

    outputs: object
    gradients: list[Tensor | None]
    written: list[Tensor]  # inputs that it wrote to
    generators: list  # their states afterwards


def difference(expected: Outcome, actual: Outcome, guarantee: Exact | Approximate | Stochastic) -> str:
    """Where two outcomes differ by more than is promised, in words; empty where they do not."""
    theirs, their_structure = tree_flatten(expected.outputs)
    ours, our_structure = tree_flatten(actual.outputs)
    if their_structure != our_structure:
        return f"the original returns {_described(expected.outputs)}, ours {_described(actual.outputs)}"
    for i, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        if problem := _value(their, our, guarantee):
            return f"output {i}: {problem}"
    if len(expected.gradients) != len(actual.gradients):
        return "gradients: only one of the two has them"
    if isinstance(guarantee, Stochastic):
        return ""
    for i, (their, our) in enumerate(zip(expected.gradients, actual.gradients, strict=True)):
        if problem := _gradient(their, our, guarantee):
            return f"gradient {i}: {problem}"
    if len(expected.written) != len(actual.written):
        return f"the original writes to {len(expected.written)} of its inputs, ours to {len(actual.written)}"
    for their, our in zip(expected.written, actual.written, strict=True):
        if problem := _tensor(their, our, guarantee):
            return f"an input that is written to: {problem}"
    if not _same_states(expected.generators, actual.generators):
        return "the generators of random numbers are left in another state"
    return ""


def _described(outputs: object) -> str:
    if isinstance(outputs, Tensor):
        return f"a tensor {tuple(outputs.shape)}"
    return f"a {type(outputs).__name__}" + (f" of {len(outputs)}" if hasattr(outputs, "__len__") else "")


def _value(their: object, our: object, guarantee) -> str:
    if isinstance(their, Tensor) and isinstance(our, Tensor):
        return _tensor(their.detach(), our.detach(), guarantee)
    if isinstance(their, (int, float)) and isinstance(our, (int, float)):
        return _tensor(torch.tensor(their), torch.tensor(our), guarantee)
    return "" if type(their) is type(our) else f"the original is {type(their).__name__}, ours {type(our).__name__}"


def _tensor(their: Tensor, our: Tensor, guarantee) -> str:
    for what in ("shape", "dtype", "device"):
        if getattr(their, what) != getattr(our, what):
            return f"the original has {what} {getattr(their, what)}, ours {getattr(our, what)}"
    if isinstance(guarantee, Stochastic):
        differ = their.isfinite().all() != our.isfinite().all()
        return "only one of the two is finite" if differ else ""
    unequal = (their != our) & ~(their.isnan() & our.isnan())
    if not unequal.any():
        return ""
    if isinstance(guarantee, Exact) or not their.is_floating_point():
        return f"{unequal.sum().item()} of {unequal.numel()} values differ"
    if guarantee.labels is not None:
        share = unequal.double().mean().item()
        return f"{share:.2%} of the labels differ" if share > guarantee.labels else ""
    finite = their.isfinite()
    if not torch.equal(finite, our.isfinite()):
        return "not finite where the original is, or the reverse"
    bound = max(guarantee.values, _rounding(their))
    apart = (their[finite].double() - our[finite].double()).abs().max().item()
    largest = their[finite].double().abs().max().item()
    if apart > bound * largest:
        return f"{apart:.1e} apart, where the largest value is {largest:.1e}; the bound is {bound:.0e} of it"
    return ""


def _gradient(their: Tensor | None, our: Tensor | None, guarantee) -> str:
    if their is None or our is None:
        rest = our if their is None else their
        return "" if rest is None or not rest.any() else "only one of the two has it"
    if isinstance(guarantee, Exact):
        return _tensor(their, our, guarantee)
    if their.shape != our.shape or not torch.equal(their.isfinite(), our.isfinite()):
        return "not finite where the original is, or of another shape"
    finite = their.isfinite()
    their, our, rounding = their[finite].double(), our[finite].double(), _rounding(their)
    bound = max(guarantee.values if guarantee.gradients is None else guarantee.gradients, rounding)
    apart, norm = (their - our).norm().item(), their.norm().item()
    return (
        f"{apart / norm if norm else apart:.1e} apart in L2; the bound is {bound:.0e}" if apart > bound * norm else ""
    )


def _rounding(x: Tensor) -> float:
    """A few roundings of the least precise format that may have been used."""
    dtypes = [x.dtype]
    if torch.is_autocast_enabled(x.device.type):
        dtypes.append(torch.get_autocast_dtype(x.device.type))
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    if x.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        eps = max(eps, 2.0**-10)
    return ROUNDINGS * eps if eps > torch.finfo(torch.float32).eps else 0.0


def _same_states(their: object, our: object) -> bool:
    """Whether generators are in the same state: tensors, arrays and numbers in lists and tuples."""
    if isinstance(their, (list, tuple)):
        return len(their) == len(our) and all(map(_same_states, their, our))
    if isinstance(their, Tensor):
        return torch.equal(their, our)
    return bool((their == our).all()) if hasattr(their, "all") else their == our
