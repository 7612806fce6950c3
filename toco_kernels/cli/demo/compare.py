"""Providers of one operator side by side: verified, timed in turn, the memory of each measured in a fresh process."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from ...common import measure
from ...testing import assert_within_budget
from .. import doctor, format_table

Tensors = tuple[Tensor, ...]
Provider = Callable[..., Tensors]  # a module's function, so that a fresh process finds it


def device() -> str:
    """Where everything runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def answers_here(operator: str) -> str:
    """The implementation of an operator that `device()` gets."""
    answer = doctor.on_cpu(operator) if device() == "cpu" else doctor.on_cuda(operator, doctor.Gpu.find())
    return answer.implementation


@dataclass(frozen=True)
class Verdict:
    """How far results are from the published code in float64, and whether that is too far."""

    error: float  # the largest over the outputs, relative to the largest value of each
    problem: str  # in words; empty when all is finite and the budget of toco_kernels.testing is kept

    @property
    def word(self) -> str:
        """For the column `verified`."""
        return "NO" if self.problem else "yes"

    def wrong(self, name: str) -> list[str]:
        """The problem of whoever has this name; empty without one."""
        return [f"{name}: {self.problem}"] if self.problem else []


@dataclass(frozen=True)
class Judge:
    """What the published code makes of some inputs, by which others are judged."""

    exact: Tensors  # in float64
    eager: Tensors  # in the dtype of the inputs

    @classmethod
    def of(cls, published: Provider, inputs: Tensors) -> "Judge":
        """Run the published code twice."""
        doubles = (tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
        return cls(published(*doubles), published(*inputs))

    def verdict(self, outputs: Tensors) -> Verdict:
        """Judge what some provider made of the inputs."""
        errors, problem = [], ""
        for i in range(len(self.exact)):
            errors.append((outputs[i] - self.exact[i]).abs().max() / self.exact[i].abs().max())
            try:
                assert outputs[i].isfinite().all(), f"output {i}: not finite"
                assert_within_budget(outputs[i], exact=self.exact[i], eager=self.eager[i], what=f"output {i}")
            except AssertionError as exceeded:
                problem = problem or str(exceeded)
        return Verdict(torch.stack(errors).max().item(), problem)  # NaN, if one is


@dataclass(frozen=True)
class Outcome:
    """What a table was printed of."""

    outputs: dict[str, list[Tensors]]  # provider -> for each of the inputs
    judges: list[Judge]  # for each of the inputs
    wrong: list[str]


def side_by_side(providers: dict[str, Provider], inputs: list[Tensors], small_inputs: Tensors) -> Outcome:
    """Print the table of some providers.

    Args:
        providers: name -> function; one is called "published", and the others are judged by it.
        inputs: what every provider is called with and judged on. Time and memory are those of the first call.
        small_inputs: the same kinds of tensors, but tiny: a first call with them, in the process that measures memory,
            loads the code, whose megabytes would hide those of the data.
    """
    judges = [Judge.of(providers["published"], tensors) for tensors in inputs]
    others = {name: provider for name, provider in providers.items() if name != "published"}
    outputs = {"published": [judge.eager for judge in judges]}
    outputs |= {name: [provider(*tensors) for tensors in inputs] for name, provider in others.items()}
    verdicts = {}
    for name, results in outputs.items():
        single = [judge.verdict(result) for judge, result in zip(judges, results, strict=True)]
        error = torch.tensor([verdict.error for verdict in single]).max().item()
        verdicts[name] = Verdict(error, next((verdict.problem for verdict in single if verdict.problem), ""))
    right = [name for name, verdict in verdicts.items() if name == "published" or not verdict.problem]
    calls = {name: partial(providers[name], *inputs[0]) for name in right}  # no speed of a wrong answer
    timings = measure.time_calls(calls, seconds=5)
    rows = [["", "median", "p20 - p80", "speed-up", "peak memory", "error", "verified"]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.pt"
        torch.save((inputs[0], small_inputs), file)
        for name, verdict in verdicts.items():
            cost = ["-"] * 4
            if timing := timings.get(name):
                ms, *spread = (f"{ms:.{3 if ms < 100 else 0}f}" for ms in (timing.ms, timing.ms_p20, timing.ms_p80))
                speed_up = f"{timings['published'].ms / timing.ms:.1f}x"
                cost = [f"{ms} ms", " - ".join(spread), speed_up, peak_memory(providers[name], file)]
            verified = "sets the budget" if name == "published" else verdict.word
            rows.append([name, *cost, f"{verdict.error:.1e}", verified])
    print(format_table(rows))
    return Outcome(outputs, judges, [line for name, verdict in verdicts.items() for line in verdict.wrong(name)])


def peak_memory(provider: Provider, inputs: Path) -> str:
    """The peak of one call, in a fresh process."""
    if device() == "cpu" and not os.access("/proc/self/clear_refs", os.W_OK):
        return "unknown"  # only Linux tells
    name = provider.__module__, provider.__name__
    return f"{measure.peak_mb(f'{__name__}:prepare', *name, str(inputs), torch.get_num_threads()):.1f} MB"


def prepare(module: str, function: str, file: str, threads: int) -> Callable[[], Tensors]:
    """What the process that measures memory calls."""
    torch.set_num_threads(threads)
    provider = getattr(import_module(module), function)
    inputs, small_inputs = torch.load(file)
    provider(*small_inputs)
    return partial(provider, *inputs)
