"""Compares an operator with its rivals: verified first, then timed in turn, with memory in fresh processes.

A bench file declares a `Bench` and passes each of its cases to the fixture `compare`. `pytest benchmarks` runs them
all, `-m decisive` the most telling case of each operator, `--compile` adds torch.compile of the rivals.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from importlib import import_module
from typing import NamedTuple

import graphs
import pytest
import torch
from rows import Results, sources
from torch import Tensor

from toco_kernels._library import OPERATORS
from toco_kernels.common import measure
from toco_kernels.common.measure import Timing
from toco_kernels.testing import change_tensors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORWARD, TRAINING = "forward", "forward+backward"
RIVALS = "published", "rewrite"
SECONDS = 5  # for timing one case, all providers together
LOOSE, TIGHT = 2e-2, 1e-4  # relative errors that pass, in reduced precision and in float32


@dataclass(frozen=True)
class Case:
    """One set of inputs: its name in the tables, the sizes that `Bench.inputs` takes, the dtype of the inputs."""

    name: str
    sizes: dict[str, object] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    decisive: bool = False


@dataclass(frozen=True)
class Bench:
    """An operator, its rivals, and the cases to compare them on."""

    room: str  # the operator's folder
    op: str  # the public function
    providers: dict[str, Callable]  # toco_kernels, published and rewrite, with the same keyword arguments
    inputs: Callable[..., dict]  # (generator, **sizes) -> those arguments, on the CPU, in float32
    flop: Callable[..., int]  # (direction, **inputs) -> operations that cannot be avoided
    cases: list[Case]
    tiny: dict[str, object]  # sizes of a call that only loads what a process loads once
    differentiable: tuple[str, ...] = ()
    blas: Callable | None = None  # (direction, **inputs): the matrix products alone, where they are the limit

    @property
    def directions(self) -> tuple[str, ...]:
        return (FORWARD, TRAINING) if self.differentiable else (FORWARD,)

    @property
    def every_case(self):
        """Decorates a test of `case`, `direction` and `compare`."""
        return pytest.mark.parametrize(
            ("case", "direction"),
            [
                pytest.param(case, way, id=f"{case.name}-{way}", marks=[pytest.mark.decisive] if case.decisive else [])
                for case in self.cases
                for way in self.directions
            ],
        )

    def make(self, case: Case, direction: str) -> dict:
        """The arguments of a case: the same numbers on every device and in every process."""
        inputs = cast(self.inputs(torch.Generator().manual_seed(0), **case.sizes), case.dtype)
        for name in self.differentiable if direction == TRAINING else ():
            inputs[name].requires_grad_()
        return inputs


def cast(inputs: dict, dtype: torch.dtype) -> dict:
    """The inputs on the device that is measured, floating-point tensors in `dtype`."""

    def convert(x):
        return x.detach().to(DEVICE, dtype if x.is_floating_point() else x.dtype).requires_grad_(x.requires_grad)

    return change_tensors(inputs, convert)


def step(function: Callable, inputs: dict, context: Callable = nullcontext) -> Callable[[], list[Tensor]]:
    """What is verified and what is timed: the output, then the gradients of the inputs that require one."""
    leaves = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]

    def call():
        with context():
            output = function(**inputs)
            if not leaves:
                return [output]
            return [output.detach(), *torch.autograd.grad(output, leaves, _arriving(output.shape, output.dtype))]

    return call


@cache
def _arriving(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The gradient that arrives at an output: random, the same for all. Every dtype holds bfloat16's numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(DEVICE, dtype)


class Provider(NamedTuple):
    """A function, the context it runs in, and the precision of matrix products there."""

    function: Callable
    context: Callable
    precision: str


@contextmanager
def _tf32():
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def variants(bench: Bench, dtype: torch.dtype, *, compiled: bool) -> dict[str, Provider]:
    """The bench's providers as they are, the rivals compiled if wanted, and all in less precision on a GPU."""
    precision = _name(dtype)
    found = {name: Provider(function, nullcontext, precision) for name, function in bench.providers.items()}
    if compiled:
        torch.compiler.reset()  # else all but the first few cases would silently run uncompiled
        for name in RIVALS:
            function = torch.compile(bench.providers[name], dynamic=False)
            found[f"{name}+compile"] = Provider(function, nullcontext, precision)
    if DEVICE == "cuda" and dtype == torch.float32:
        amp = partial(torch.autocast, "cuda", torch.bfloat16)
        for name, function in bench.providers.items():
            found[f"{name}+tf32"] = Provider(function, _tf32, "tf32")
            found[f"{name}+amp"] = Provider(function, amp, "amp")
    return found


def has_kernel(operator: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"toco_kernels::{operator}", DEVICE.upper())


def max_error(outputs: list[Tensor], exact: list[Tensor]) -> float:
    """The largest deviation, relative to the largest magnitude; of labels, the share that differs. NaN is infinite."""

    def error(actual: Tensor, expected: Tensor) -> float:
        if actual.shape != expected.shape:
            return math.inf
        if not expected.is_floating_point():
            return (actual != expected).double().mean().item()
        deviation = (actual.double() - expected).abs().max()
        relative = (deviation / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)).item()
        return math.inf if math.isnan(relative) else relative

    return max(error(*pair) for pair in zip(outputs, exact, strict=True))


def tolerance(precision: str, published: float) -> float:
    """The largest relative error that passes. In float32 twice that of `published`, which may lose digits."""
    return min(max(TIGHT, 2 * published), LOOSE) if precision == "float32" else LOOSE


def compare(bench: Bench, case: Case, direction: str, *, benchmark, results: Results, compiled: bool = False) -> None:
    """Verify all providers of one case, measure those that are right, and fail if one is not."""
    if bench.op in OPERATORS and not has_kernel(bench.op):
        pytest.fail(f"no {DEVICE} kernel of {bench.op} is built: its reference is not what these rows are about")
    inputs = bench.make(case, direction)
    providers = variants(bench, case.dtype, compiled=compiled)
    steps = {name: step(provider.function, inputs, provider.context) for name, provider in providers.items()}
    exact = step(bench.providers["published"], cast(inputs, torch.float64))()
    errors = {name: max_error(call(), exact) for name, call in steps.items()}
    wrong = [name for name in steps if errors[name] > tolerance(providers[name].precision, errors["published"])]
    right = {name: call for name, call in steps.items() if name not in wrong}

    moved = sum(x.nbytes for x in [*_tensors(inputs).values(), *steps["published"]()])  # each read or written once
    limits = {"copy": _copy(moved)}
    if bench.blas:
        limits["blas"] = torch.no_grad()(lambda: bench.blas(direction, **inputs))
    shared = {
        "op": bench.op,
        "case": case.name,
        "shape": ", ".join(f"{name} {'x'.join(map(str, x.shape))}" for name, x in _tensors(inputs).items()),
        "dtype": _name(case.dtype),
        "direction": direction,
        "threads": torch.get_num_threads(),
        "bytes": moved,
        "flop": bench.flop(direction, **inputs),
        "sources": sources(bench.room),
    }

    rows = []
    for timer, cache_state, timings in _measurements(right | limits, benchmark):
        floor = max(timings[name].ms for name in limits)
        rows += [
            {
                **shared,
                **{quantile: _digits(ms) for quantile, ms in asdict(timing).items()},
                "provider": name,
                "precision": shared["dtype"] if name in limits else providers[name].precision,
                "timer": timer,
                "cache": cache_state,
                "peak_mb": None,  # follows
                "limit_share": None if name in limits else _digits(floor / timing.ms),
                "max_error": None if name in limits else _digits(errors[name]),
            }
            for name, timing in timings.items()
        ]
        results.put(rows)

    if direction == bench.directions[-1]:
        for name in bench.providers.keys() & {row["provider"] for row in rows}:
            peak = _peak_mb(bench, case, direction, name, steps[name]()[0])
            rows = [row | {"peak_mb": peak} if row["provider"] == name else row for row in rows]
            results.put(rows)

    if wrong:
        message = "wrong, so not measured: " + ", ".join(f"{name} (error {errors[name]:.2g})" for name in wrong)
        if any(name in bench.providers or name.startswith("toco_kernels") for name in wrong):
            pytest.fail(message)
        pytest.xfail(message)  # a rival that breaks down when compiled or in less precision: news, but not our bug


def _measurements(calls: dict[str, Callable], benchmark) -> Iterator[tuple[str, str, dict[str, Timing]]]:
    """Timer, state of the cache, timings: one by one, so that each is saved before the next can fail."""
    timings = _wall(calls, benchmark)
    if benchmark.disabled:  # --benchmark-disable: verified, not measured
        return
    yield "wall", "warm", timings
    if DEVICE == "cuda":
        yield "graph", "warm", graphs.warm(calls)
        yield "graph", "cold", graphs.cold(calls)


def _wall(calls: dict[str, Callable], benchmark) -> dict[str, Timing]:
    rotation = measure.Rotation(calls)
    start = time.perf_counter()
    rotation()
    turn = time.perf_counter() - start
    benchmark.pedantic(rotation, rounds=max(5, min(100, round(SECONDS / turn))))
    timings = rotation.timings()
    benchmark.extra_info |= {name: asdict(timing) for name, timing in timings.items()}
    return timings


def _copy(moved: int) -> Callable[[], object]:
    """A copy that reads and writes as many bytes, together: what a kernel limited by memory can hope for."""
    source = torch.ones(moved // 2, dtype=torch.uint8, device=DEVICE)
    return partial(torch.empty_like(source).copy_, source)


def _peak_mb(bench: Bench, case: Case, direction: str, provider: str, output: Tensor) -> float:
    where = bench.inputs.__module__, bench.op, bench.cases.index(case), direction, provider
    return _digits(measure.peak_mb(f"{__name__}:prepare", *where, list(output.shape), _name(output.dtype)))


def prepare_training(module: str, op: str, sizes: dict, provider: str) -> Callable[[], object]:
    """As `prepare`, of any sizes, in the direction of training. What is differentiable there has a scalar output."""
    return prepare(module, op, sizes, _find(module, op).directions[-1], provider, [], "float32")


def prepare(
    module: str, op: str, case: int | dict, direction: str, provider: str, shape: list[int], dtype: str
) -> Callable[[], object]:
    """The call whose memory is measured, in a process that has nothing else to do. A case is one's number, or sizes."""
    bench = _find(module, op)
    function, measured = bench.providers[provider], Case("", case) if isinstance(case, dict) else bench.cases[case]
    tiny = Case("tiny", bench.tiny, measured.dtype)  # loads what a process loads once
    step(function, bench.make(tiny, direction))()
    _arriving(tuple(shape), getattr(torch, dtype))  # the output's gradient is not the operator's
    return step(function, bench.make(measured, direction))


def _find(module: str, op: str) -> Bench:
    return next(x for x in vars(import_module(module)).values() if isinstance(x, Bench) and x.op == op)


def _tensors(inputs: dict) -> dict[str, Tensor]:
    """Every tensor with its name; those of a list are numbered."""
    lists = {name: x if isinstance(x, list) else [x] for name, x in inputs.items()}
    return {
        name if len(items) == 1 else f"{name}[{i}]": x
        for name, items in lists.items()
        for i, x in enumerate(items)
        if isinstance(x, Tensor)
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _digits(x: float) -> float:
    return float(f"{x:.4g}")
