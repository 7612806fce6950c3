"""Attributes the peak memory of a training step to modules and operators.

Every operation that PyTorch dispatches is watched by a `TorchDispatchMode`; hooks tell in which module it runs. In the
backward no module runs, but the node of the autograd graph that does has a number, and those are given in the order of
the forward: the module that made it is known.
"""

import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..common.measure import MB

OUTSIDE = "(outside of modules)"


class Place(NamedTuple):
    """Where in a step something happened.

    Args:
        module: path of the innermost module, as `named_modules` spells it.
        operator: with its namespace, `aten::addmm`.
        phase: "forward" or "backward". What runs in neither, an optimiser say, counts as forward.
    """

    module: str
    operator: str
    phase: str


@dataclass
class Row:
    """What was seen of one module, with all modules inside it, or of one operator.

    Args:
        peak: bytes in use at most, while it ran.
        added: bytes that one of its operations added at most, to what was in use before it.
        at_peak: bytes that it had made, and that were in use at the peak of the whole.
        calls: operations.
    """

    peak: int = 0
    added: int = 0
    at_peak: int = 0
    calls: int = 0


@dataclass
class Report:
    """What `profile` saw. It is complete when the context ends; all bytes are beyond those in use when it began.

    Args:
        device: "cuda": bytes of the allocator, scratch memory inside of operators included; "cpu": bytes of living
            tensors, without scratch memory, which nothing counts there.
        peak: bytes in use at most.
        place: where that was; None if nothing ran.
        modules: path -> its row, backward included. A module's path is "" where it is the root itself.
        operators: name -> its row.
    """

    device: str
    peak: int = 0
    place: Place | None = None
    modules: dict[str, Row] = field(default_factory=dict)
    operators: dict[str, Row] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self) | {"place": self.place and self.place._asdict()}

    def table(self, rows: int = 12) -> str:
        """The operators and modules with the highest peaks, as text, in MB."""
        from ..cli import format_table

        if self.place is None:
            return "nothing ran"
        where = f"in {self.place.operator}, {self.place.module or 'the model itself'}, {self.place.phase}"
        lines = [f"peak {self.peak / MB:.1f} MB on {self.device}, {where}"]
        for kind, found in (("operator", self.operators), ("module", self.modules)):
            order = sorted(found.items(), key=lambda item: (-item[1].peak, -item[1].added, item[0]))[:rows]
            cells = [(kind, "peak, MB", "added at once, MB", "of it at the peak, MB", "operations")]
            for name, row in order:
                megabytes = (f"{n / MB:.1f}" for n in (row.peak, row.added, row.at_peak))
                cells.append((name or "(the model)", *megabytes, str(row.calls)))
            lines += ["", format_table(cells)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


@contextmanager
def profile(model: nn.Module | None = None) -> Iterator[Report]:
    """Watch the peak memory of what runs inside, and attribute it to modules and operators.

    Args:
        model: whose modules have names in the report; None: those of any module, by its class.

    Returns:
        A report, complete when the context ends: print it, or read `peak`, `place`, `modules`, `operators`.

    On a GPU the allocator is read before and after each operation, which waits for nothing: peaks inside of operators
    are seen. On a CPU living tensors are counted. Operations take tens of microseconds longer; times mean nothing here.
    `torch.compile`d code is one operation. Memory is that of one process and, on a GPU, of the current device.

    Example:
        with toco_kernels.memory.profile(model) as report:
            loss = model(images, labels, views=views, step=step).loss
            loss.backward()
        print(report)
    """
    report = Report("cuda" if torch.cuda.is_available() else "cpu")
    modules = _Modules(model)
    watch = _Watch(report, modules)
    hooks = [
        register_module_forward_pre_hook(modules.enter),
        register_module_forward_hook(modules.leave, always_call=True),
    ]
    try:
        with watch:
            yield report
    finally:
        for hook in hooks:
            hook.remove()
        watch.finish()


class _Modules:
    """Which modules are running, and which of them made a node of the autograd graph."""

    def __init__(self, model: nn.Module | None):
        self.names = {} if model is None else {module: name for name, module in model.named_modules()}
        self.any = model is None
        self.running: list[tuple[str, ...]] = [()]
        self.since: list[int] = [torch.autograd._get_sequence_nr()]  # numbers at which …
        self.entered: list[tuple[str, ...]] = [()]  # … these began to run

    def enter(self, module: nn.Module, _) -> None:
        inside = self.running[-1]
        if module in self.names:
            inside = (*inside, self.names[module])
        elif self.any:
            name = type(module).__name__
            inside = (*inside, f"{inside[-1]}.{name}" if inside else name)
        self._run(inside)
        self.running.append(inside)

    def leave(self, *_) -> None:
        if len(self.running) > 1:  # else it was running when watching began
            self.running.pop()
        self._run(self.running[-1])

    def _run(self, inside: tuple[str, ...]) -> None:
        self.since.append(torch.autograd._get_sequence_nr())
        self.entered.append(inside)

    def now(self) -> tuple[tuple[str, ...], str]:
        """The paths of the modules that run, from the outside in, and the phase."""
        node = torch._C._current_autograd_node()
        phase = "forward" if node is None else "backward"
        if node is None or len(self.running) > 1:  # a block that is computed again in the backward runs as a module
            return self.running[-1], phase
        number = node._sequence_nr()
        if number >= torch.autograd._get_sequence_nr():  # what accumulates gradients has no number
            return (), phase
        return self.entered[max(0, bisect_right(self.since, number) - 1)], phase


class _Watch(TorchDispatchMode):
    """Counts the bytes of storages that operations make, and lets them go when they die."""

    def __init__(self, report: Report, modules: _Modules):
        super().__init__()
        self.report, self.modules = report, modules
        self.on_gpu = report.device == "cuda"
        self.base = torch.cuda.memory_allocated() if self.on_gpu else 0
        self.living: dict[int, int] = {}  # storage -> bytes, 0 for those that were there before
        self.in_use = 0
        self.made_by: Counter[tuple[tuple[str, ...], str]] = Counter()  # modules and operator -> bytes in use
        self.at_peak: dict[tuple[tuple[str, ...], str], int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        paths, phase = self.modules.now()
        for tensor in _tensors((args, kwargs)):
            self._keep(tensor, None)
        before = self.in_use
        if self.on_gpu:
            before = torch.cuda.memory_allocated() - self.base
            torch.cuda.reset_peak_memory_stats()
        result = func(*args, **kwargs or {})
        name = func.name().split(".")[0]
        for tensor in _tensors(result):
            self._keep(tensor, (paths, name))
        used = torch.cuda.max_memory_allocated() - self.base if self.on_gpu else self.in_use
        self._note(paths, name, phase, used, used - before)
        return result

    def _keep(self, tensor: Tensor, maker: tuple[tuple[str, ...], str] | None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.living:
            return
        size = storage.nbytes() if maker else 0
        if tensor.device.type != self.report.device:
            size = 0
        self.living[key] = size
        self.in_use += size
        if size:
            self.made_by[maker] += size
        weakref.finalize(storage, self._let_go, key, size, maker).atexit = False

    def _let_go(self, key: int, size: int, maker: tuple[tuple[str, ...], str] | None) -> None:
        del self.living[key]
        self.in_use -= size
        if size:
            self.made_by[maker] -= size

    def _note(self, paths: tuple[str, ...], name: str, phase: str, used: int, added: int) -> None:
        report = self.report
        rows = [report.modules.setdefault(path, Row()) for path in dict.fromkeys(paths or (OUTSIDE,))]
        for row in (*rows, report.operators.setdefault(name, Row())):
            row.peak, row.added, row.calls = max(row.peak, used), max(row.added, added), row.calls + 1
        if used > report.peak or report.place is None:
            report.peak, report.place = max(0, used), Place(paths[-1] if paths else OUTSIDE, name, phase)
            self.at_peak = {maker: size for maker, size in self.made_by.items() if size}

    def finish(self) -> None:
        """Who had made what was in use at the peak."""
        for (paths, name), size in self.at_peak.items():
            self.report.operators[name].at_peak += size
            for path in dict.fromkeys(paths or (OUTSIDE,)):
                self.report.modules[path].at_peak += size


def _tensors(tree: object) -> Iterator[Tensor]:
    """The dense tensors of arguments or results, each with a storage of its own or shared."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.device.type != "meta":
            yield leaf
