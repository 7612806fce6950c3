"""The functions and classes that were replaced in this process: first calls, costs, decisions.

A slot is one definition of one file. What the file sees under its name afterwards is a stand-in, which compares the
original and ours when it is called first, and calls one of the two from then on.
"""

import functools
import os
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from . import agree
from .modules import module_class
from .registry import Replacement
from .verify import NotImportable, OriginalRaises, Verdict, needs_gradient, verify

SLOTS: list["Slot"] = []

_LOCK = threading.RLock()
_THREAD = threading.local()  # .originals: whether originals call originals


def _after_fork() -> None:
    global _LOCK
    _LOCK = threading.RLock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass
class Slot:
    """One replaced definition."""

    name: str
    file: str
    line: int
    replacement: Replacement
    trusted: bool = False
    needs: str = ""  # a module that the original imports and that is not here
    verdict: Verdict | None = None
    calls: int = 0
    seconds: float = 0.0  # of these calls, on the host
    compiled: bool = False  # whether torch.compile has traced a call, which it neither compares nor counts
    stand_in: object = None
    original: object = None
    ours: object = field(init=False)
    index: int = field(init=False)  # among SLOTS

    def __post_init__(self):
        self.index = len(SLOTS)
        self.ours = self.replacement.load()
        if self.trusted:
            self.verdict = Verdict(True, "trusted")
        SLOTS.append(self)

    def take(self, original: type | Callable) -> type | Callable:
        """What stands in for the original from now on; a decorator."""
        self.original = original
        if not isinstance(original, type):
            self.stand_in = _function(self, original, self.ours)
        elif issubclass(original, nn.Module):
            self.stand_in = module_class(self, original)
        else:  # a torch.autograd.Function
            apply = _function(self, original.apply, self.ours.apply)
            self.stand_in = type(original.__name__, (), {"apply": staticmethod(apply), "__doc__": original.__doc__})
            self.stand_in.__module__, self.stand_in.__qualname__ = original.__module__, original.__qualname__
        return self.stand_in

    def call(self, original: Callable, ours: Callable, args: tuple, kwargs: dict, quiet: Callable | None = None):
        """Call one of the two, and count.

        `quiet` is ours without side effects that must happen once per call, a module's hooks: it is what is compared.
        """
        if getattr(_THREAD, "originals", False):
            return original(*args, **kwargs)
        if torch.compiler.is_compiling():
            _traced(self.index)
            return (ours if self.verdict is None or self.verdict.ours else original)(*args, **kwargs)
        if self._is_to_decide(args, kwargs) and not _is_capturing():
            with _LOCK:
                if self._is_to_decide(args, kwargs):
                    self._decide(original, quiet or ours, args, kwargs)
        function = ours if self.verdict is not None and self.verdict.ours else original
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.calls += 1
        self.seconds += time.perf_counter() - start
        return result

    def check_importable(self) -> None:
        """Raise if the original, could it be called, would miss a module."""
        if self.needs:
            raise NotImportable(f"No module named {self.needs!r}")

    @contextmanager
    def named_original(self):
        """The file's name leads to the original: `super(PAR, self)` in its methods means it, and not its stand-in."""
        names = vars(sys.modules[self.original.__module__])
        with _LOCK:
            before, names[self.name] = names.get(self.name), self.original
            try:
                yield
            finally:
                names[self.name] = before

    def keep_original(self, why: str) -> None:
        """The original stays, and all names lead to it again."""
        if self.verdict is None or self.verdict.ours:
            self.verdict = Verdict(False, "cannot be replaced", why)
            list(rebind(self.stand_in, self.original))
            self._warn(stacklevel=4)

    def _is_to_decide(self, args: tuple, kwargs: dict) -> bool:
        return self.verdict is None or (self.verdict.again and needs_gradient(args, kwargs))

    def _decide(self, original: Callable, ours: Callable, args: tuple, kwargs: dict) -> None:
        key, again = self._key, not needs_gradient(args, kwargs)
        decided = {f"{key}/{what}": agree.known(f"{key}/{what}") for what in ("values", "gradients")}
        key += "/values" if again else "/gradients"
        against = next((found for found in decided.values() if found is not None and not found[0]), None)
        agreed = against or decided[key]
        if agreed is not None:
            state = "verified elsewhere" if agreed[0] else "differs elsewhere"
            self.verdict = Verdict(agreed[0], state, agreed[1], again=agreed[0] and again)
        else:
            start = time.perf_counter()
            try:
                found = verify(_among_originals(original), ours, args, kwargs, self.replacement.guarantee)
            except OriginalRaises:  # the caller will see; another call decides
                return
            self.verdict = agree.agree(key, found, time.perf_counter() - start)
        if not self.verdict.ours:
            if isinstance(self.original, type):
                list(rebind(self.stand_in, self.original))
            self._warn(stacklevel=5)

    @property
    def _key(self) -> str:
        """What ranks call this; the folders above may differ between machines."""
        return f"toco_kernels/{'/'.join(Path(self.file).parts[-2:])}:{self.line}/{self.name}"

    def _warn(self, stacklevel: int) -> None:
        if agree.is_first_to(f"{self._key}/warn"):
            warnings.warn(
                f"toco_kernels: {self.name} ({self.file}:{self.line}) is not replaced, the original stays: "
                f"{self.verdict.detail}",
                RuntimeWarning,
                stacklevel=stacklevel,
            )


def rebind(old: object, new: object) -> Iterator[str]:
    """Let names at the top of modules lead to `new` instead of `old`; give these names."""
    for module_name, module in list(sys.modules.items()):
        if isinstance(module, types.ModuleType):
            for name in [name for name, value in vars(module).items() if value is old]:
                setattr(module, name, new)
                yield f"{module_name}.{name}"


@torch.compiler.assume_constant_result
def _traced(index: int) -> bool:
    """Note that a call is being traced. torch.compile runs this once, and keeps nothing of it."""
    SLOTS[index].compiled = True
    return True


@contextmanager
def _originals_only():
    before, _THREAD.originals = getattr(_THREAD, "originals", False), True
    try:
        yield
    finally:
        _THREAD.originals = before


def _among_originals(original: Callable) -> Callable:
    """The original, calling originals where it calls what is replaced elsewhere."""

    def call(*args, **kwargs):
        with _originals_only():
            return original(*args, **kwargs)

    return call


def _is_capturing() -> bool:
    """Whether a CUDA graph is being captured, which allows no comparison."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _function(slot: Slot, original: Callable, ours: Callable) -> Callable:
    """What stands in for a function."""

    def call_original(*args, **kwargs):
        slot.check_importable()
        return original(*args, **kwargs)

    @functools.wraps(original)
    def stand_in(*args, **kwargs):
        return slot.call(call_original, ours, args, kwargs)

    return stand_in
