"""The first call of a replaced function: original and ours on the same inputs, compared.

Both get clones of the inputs, start from the same generators and buffers, and leave the caller's as they were.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from ..common import measure
from .compare import Outcome, difference
from .registry import Approximate, Exact, Stochastic

TWICE_BELOW = 0.5  # seconds: what is faster is run a second time, since a first call pays for what is loaded once


class NotImportable(ImportError):
    """The original needs a module that is not here."""


class OriginalRaises(Exception):
    """The original cannot take these inputs; nothing is decided, and its caller shall see its error."""


@dataclass(frozen=True)
class Cost:
    """Of one call with its backward."""

    ms: float
    mb: float | None  # peak, beyond what was in use; None where it cannot be measured


@dataclass(frozen=True)
class Verdict:
    """What a first call has shown."""

    ours: bool  # whether ours runs from now on
    state: str  # in a word, for the report
    detail: str = ""
    before: Cost | None = None
    after: Cost | None = None
    again: bool = False  # whether the first call that needs gradients is to be compared too, since this one did not


def verify(
    original: Callable, ours: Callable, args: tuple, kwargs: dict, guarantee: Exact | Approximate | Stochastic
) -> Verdict:
    """Run both and compare outputs, gradients, what became of the inputs, and the generators' states.

    Where memory runs out, half as many images are tried, down to one.

    Raises:
        OriginalRaises: it fails on these inputs, for a reason that lies in them.
    """
    batch = share = _batch(args, kwargs)
    while True:
        inputs = (args, kwargs) if share == batch else _first(share, batch, args, kwargs)
        expected = actual = None  # those of a larger share, whose memory is needed
        try:
            expected, before = _run(original, *inputs)
        except (ImportError, NameError) as error:
            return Verdict(True, "original not importable", str(error))
        except Exception as error:
            if not _is_out_of_memory(error):
                if _lacks_cuda(error):
                    return Verdict(True, "original needs CUDA", str(error).splitlines()[0])
                raise OriginalRaises from error
            if share == 1:
                return Verdict(True, "original out of memory", "not even one image fits, so nothing was compared")
        else:
            try:
                actual, after = _run(ours, *inputs)
                break
            except Exception as error:  # beside what the original left, memory may be short for ours as well
                if share == 1 or not _is_out_of_memory(error):
                    return Verdict(False, "differs", f"ours raises {type(error).__name__}: {error}", before)
        _free_memory()
        share //= 2
    if problem := difference(expected, actual, guarantee):
        return Verdict(False, "differs", problem, before, after)
    detail = "" if share == batch else f"on {share} of {batch} images, for the memory that comparing takes"
    return Verdict(True, "verified", detail, before, after, again=not needs_gradient(args, kwargs))


def needs_gradient(args: tuple, kwargs: dict) -> bool:
    """Whether a call with these arguments may be differentiated."""
    return torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in tree_leaves((args, kwargs))
    )


def _run(function: Callable, args: tuple, kwargs: dict) -> tuple[Outcome, Cost]:
    """One call on clones, and its backward."""
    outcome, cost = _run_once(function, args, kwargs)
    if cost.ms < TWICE_BELOW * 1e3:
        outcome, again = _run_once(function, args, kwargs)
        cost = Cost(min(cost.ms, again.ms), again.mb)
    return outcome, cost


def _run_once(function: Callable, args: tuple, kwargs: dict) -> tuple[Outcome, Cost]:
    clones = _Clones()
    args, kwargs = tree_map(clones.of, (args, kwargs))

    def call():
        with _restored(args, kwargs) as states:
            outputs = function(*args, **kwargs)
            gradients = _gradients(outputs, clones.leaves)
            return Outcome(outputs, gradients, clones.written(), states())

    start = 0.0

    def timed():
        nonlocal start
        measure.synchronize()
        start = time.perf_counter()
        outcome = call()
        measure.synchronize()
        return outcome, (time.perf_counter() - start) * 1e3

    try:
        (outcome, ms), mb = measure.peak_mb_here(timed)
    except OSError:  # a system without /proc
        (outcome, ms), mb = timed(), None
    return outcome, Cost(ms, mb)


class _Clones:
    """Inputs that may be written to, and differentiated."""

    def __init__(self):
        self.leaves: list[Tensor] = []
        self.clones: dict[int, Tensor] = {}

    def of(self, value: object) -> object:
        """The clone of a tensor, the same one for the same tensor, or of an array; a parallel module's inner one, which
        waits for no other rank; anything else as it is."""
        if isinstance(value, (DistributedDataParallel, DataParallel)):
            return value.module
        if isinstance(value, np.ndarray):
            return value.copy()
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.clones:
            leaf = value.detach()
            if value.requires_grad:
                self.leaves.append(leaf.requires_grad_())
            self.clones[id(value)] = leaf.clone()  # no leaf, so that it may be written to
        return self.clones[id(value)]

    def written(self) -> list[Tensor]:
        """The inputs that were written to."""
        return [x.detach().reshape(-1) for x in self.clones.values() if not x.is_inference() and x._version]


def _gradients(outputs: object, leaves: list[Tensor]) -> list[Tensor | None]:
    """Of the inputs, for fixed cotangents."""
    differentiable = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    if not (differentiable and leaves):
        return []
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(x.shape, generator=generator).to(x) for x in differentiable]
    return list(torch.autograd.grad(differentiable, leaves, cotangents, allow_unused=True))


@contextmanager
def _restored(args: tuple, kwargs: dict) -> Iterator[Callable[[], list]]:
    """Generators and the buffers of modules among the arguments are afterwards what they were before.

    Gives a function that returns the generators' present states.
    """
    leaves = tree_leaves((args, kwargs))
    generators = [x for x in leaves if isinstance(x, torch.Generator)]
    modules = [x if isinstance(x, nn.Module) else getattr(x, "__self__", None) for x in leaves]
    buffers = [
        (owner._buffers, name, buffer, None if buffer is None else buffer.clone())
        for module in modules
        if isinstance(module, nn.Module)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
    ]

    def states() -> list:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        own = [g.get_state() for g in generators]
        return [torch.get_rng_state(), cuda, np.random.get_state(), random.getstate(), own]

    torch_state, cuda, numpy, python, own = states()
    try:
        yield states
    finally:
        torch.set_rng_state(torch_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(numpy)
        random.setstate(python)
        for generator, state in zip(generators, own, strict=True):
            generator.set_state(state)
        with torch.no_grad():
            for holder, name, buffer, value in buffers:
                holder[name] = buffer
                if buffer is not None:
                    buffer.copy_(value)


def _batch(args: tuple, kwargs: dict) -> int:
    """How many images there are, or 1 where the tensors do not agree about that."""
    sizes = {len(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim > 1}
    return sizes.pop() or 1 if len(sizes) == 1 else 1


def _first(count: int, batch: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The first images of a batch: of tensors, and of lists that have an entry for each."""

    def cut(value: object) -> object:
        is_batch = isinstance(value, Tensor) and value.ndim > 0
        is_list = isinstance(value, (list, tuple)) and all(isinstance(x, (Tensor, list, tuple)) for x in value)
        return value[:count] if (is_batch or is_list) and len(value) == batch else value

    return tuple(map(cut, args)), {name: cut(value) for name, value in kwargs.items()}


def _is_out_of_memory(error: Exception) -> bool:
    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("not enough memory" in said or "can't allocate memory" in said)
    )


def _lacks_cuda(error: Exception) -> bool:
    """Whether the original asked for a GPU, with `.cuda()`, where there is none."""
    return not torch.cuda.is_available() and any(word in str(error) for word in ("CUDA", "NVIDIA"))


def _free_memory() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
