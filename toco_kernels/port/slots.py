"""The functions and classes that were replaced in this process: first calls, costs, decisions.

A slot is one definition of one file. What the file sees under its name afterwards is a stand-in, which compares the
original and ours when it is called first, and calls one of the two from then on.
"""

import functools
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from . import agree
from .registry import Replacement
from .verify import NotImportable, OriginalRaises, Verdict, verify

SLOTS: list["Slot"] = []

_LOCK = threading.RLock()
_THREAD = threading.local()  # .originals: whether originals call originals


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
    seconds: float = 0.0  # of all calls but the first, on the host
    stand_in: object = None
    original: object = None
    ours: object = field(init=False)

    def __post_init__(self):
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
            self.stand_in = _module(self, original)
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
            return (ours if self.verdict is None or self.verdict.ours else original)(*args, **kwargs)
        if self.verdict is None and not _is_capturing():
            with _LOCK:
                if self.verdict is None:
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

    def _decide(self, original: Callable, ours: Callable, args: tuple, kwargs: dict) -> None:
        key = f"toco_kernels/{Path(self.file).name}:{self.line}/{self.name}"  # folders may differ between machines
        agreed = agree.known(key)
        if agreed is not None:
            self.verdict = Verdict(agreed[0], "verified elsewhere" if agreed[0] else "differs elsewhere", agreed[1])
        else:
            start = time.perf_counter()
            try:
                found = verify(_among_originals(original), ours, args, kwargs, self.replacement.guarantee)
            except OriginalRaises:  # the caller will see; another call decides
                return
            self.verdict = agree.agree(key, found, time.perf_counter() - start)
        if not self.verdict.ours:
            if isinstance(self.original, type):
                vars(sys.modules[self.original.__module__])[self.name] = self.original
            if agree.is_first_to(f"{key}/warn"):
                warnings.warn(
                    f"toco_kernels: {self.name} ({self.file}:{self.line}) is not replaced, the original stays: "
                    f"{self.verdict.detail}",
                    RuntimeWarning,
                    stacklevel=4,
                )


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


def _module(slot: Slot, original: type[nn.Module]) -> type[nn.Module]:
    """What stands in for a class of modules: ours, whose instances become the original's if it must stay."""

    class StandIn(slot.ours):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.__dict__["_toco_arguments"] = args, kwargs
            if slot.verdict is not None and not slot.verdict.ours:
                self._become_original()

        def _original(self) -> nn.Module:
            args, kwargs = self.__dict__["_toco_arguments"]
            with slot.named_original():
                made = original(*args, **kwargs)
            return made.train(self.training)

        def _become_original(self) -> None:
            made = self._original()
            made.__dict__ |= {name: hooks for name, hooks in self.__dict__.items() if name.endswith("_hooks")}
            self.__dict__ = made.__dict__
            self.__class__ = original

        def __call__(self, *args, **kwargs):
            def call_original(*args, **kwargs):
                slot.check_importable()
                made = self._original()
                device = next((x.device for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
                return made.to(device)(*args, **kwargs)

            result = slot.call(call_original, super().__call__, args, kwargs, quiet=self.forward)
            if slot.verdict is not None and not slot.verdict.ours:
                self._become_original()
            return result

        def __init_subclass__(cls, **kwargs):
            super().__init_subclass__(**kwargs)
            warnings.warn(
                f"toco_kernels: {cls.__name__} is derived from {slot.name}, which is replaced: it inherits ours. "
                "If it relies on the original's insides, leave this file out",
                RuntimeWarning,
                stacklevel=2,
            )

    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(StandIn, name, getattr(original, name))
    return StandIn
