"""Time and memory, measured so that they can be believed: rivals in turn, quantiles, and peaks in a fresh process."""

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median, quantiles

import torch

MB = 1e6


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: the median, and the 20 % and 80 % quantiles."""

    ms: float
    ms_p20: float
    ms_p80: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """The quantiles of a list of measured seconds."""
        fifths = quantiles(seconds, n=5, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 4
        return cls(median(seconds) * 1e3, fifths[0] * 1e3, fifths[3] * 1e3)


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Rotation:
    """Calls several functions in turn, so that a machine whose speed drifts drifts for all of them alike.

    A call of the rotation times each function once more; `timings()` gives what was seen so far. Fast functions are
    repeated inside one measurement until it lasts about `at_least` seconds.
    """

    def __init__(self, calls: dict[str, Callable[[], object]], *, at_least: float = 1e-3):
        self.calls = calls
        self.repeats = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in calls}
        for name, call in calls.items():
            for _ in range(2):  # the first call pays for what the process loads once
                start = time.perf_counter()
                call()
                synchronize()
                once = time.perf_counter() - start
            self.repeats[name] = max(1, round(at_least / once))

    def __call__(self) -> None:
        """Time each function once more."""
        for name, call in self.calls.items():
            repeats = self.repeats[name]
            synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            synchronize()
            self.seconds[name].append((time.perf_counter() - start) / repeats)

    def timings(self) -> dict[str, Timing]:
        """The quantiles of each function's measurements."""
        return {name: Timing.of(seconds) for name, seconds in self.seconds.items()}


def time_calls(calls: dict[str, Callable[[], object]], *, rounds: int = 20, seconds: float = 10) -> dict[str, Timing]:
    """Wall time of each function, measured in turn, for `rounds` rounds or until `seconds` have passed."""
    rotation = Rotation(calls)
    end = time.perf_counter() + seconds
    for _ in range(rounds):
        rotation()
        if time.perf_counter() > end:
            break
    return rotation.timings()


def peak_mb(prepare: str, *args: object) -> float:
    """Peak memory, in MB, of one call beyond what was in use before it, measured in a fresh process.

    Args:
        prepare: "module:function"; the function makes the inputs and returns the call to measure, which takes nothing.
        args: what it is called with; anything JSON can carry.

    On a GPU the allocator's peak; otherwise the peak resident size of the process.
    """
    child = subprocess.run(
        [sys.executable, "-m", __name__, prepare, json.dumps(args)], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(child.stdout.splitlines()[-1])


def _resident_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return float(status.split(f"{field}:")[1].split()[0]) * 1024 / MB


def _measure_here(prepare: str, args: list) -> float:
    module, function = prepare.split(":")
    call = getattr(import_module(module), function)(*args)
    return peak_mb_here(call)[1]


def peak_mb_here(call: Callable[[], object]) -> tuple[object, float]:
    """What a call returns, and its peak memory in MB, measured in this process; `peak_mb` says of what.

    In a process that has run other things memory that they freed may be used again, so this is a lower bound.
    """
    if torch.cuda.is_available():
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        synchronize()
        return result, (torch.cuda.max_memory_allocated() - before) / MB
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # else memory that preparing has freed is used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
    before = _resident_mb("VmRSS")
    result = call()
    return result, max(0.0, _resident_mb("VmHWM") - before)


if __name__ == "__main__":
    print(_measure_here(sys.argv[1], json.loads(sys.argv[2])))
