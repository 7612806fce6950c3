"""Time and memory, measured so that they can be believed: rivals in turn, quantiles, and peaks in a fresh process."""

import ctypes
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


class Syncs(TorchDispatchMode):
    """Counts, on any device, the operations at which a GPU's host would wait for it: it reads their result."""

    WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in self.WAITING
        return func(*args, **(kwargs or {}))


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


class Outcome(NamedTuple):
    """What a process of its own found out: a value, or why there is none. Running out of memory is an outcome too."""

    value: Any
    failure: str


OUT_OF_MEMORY = "out of memory"


def in_process(function: str, *args: object, limit_mb: float | None = None) -> Outcome:
    """The value of a function, called in a fresh process.

    Args:
        function: "module:function"; what it returns must be something JSON can carry.
        args: what it is called with; anything JSON can carry.
        limit_mb: how much memory it may allocate on the CPU beyond what loading PyTorch takes; None: without limit. The
            process then runs out of memory, and the machine does not.
    """
    command = [sys.executable, "-m", __name__, function, json.dumps(args), json.dumps(limit_mb)]
    child = subprocess.run(command, check=False, capture_output=True, text=True)
    if child.returncode == 0:
        return Outcome(json.loads(child.stdout.splitlines()[-1]), "")
    if child.returncode < 0:  # the system ends processes that take too much with SIGKILL
        number = -child.returncode
        ended = f"ended by {signal.Signals(number).name}"
        return Outcome(None, f"{OUT_OF_MEMORY} ({ended} by the system)" if number == signal.SIGKILL else ended)
    said = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
    return Outcome(None, said[0])


def peak_mb(prepare: str, *args: object) -> float:
    """Peak memory, in MB, of one call beyond what was in use before it, measured in a fresh process.

    Args:
        prepare: "module:function"; the function makes the inputs and returns the call to measure, which takes nothing.
        args: what it is called with; anything JSON can carry.

    On a GPU the allocator's peak; otherwise the peak resident size of the process.

    Raises:
        RuntimeError: the process failed.
    """
    peak, failure = try_peak_mb(prepare, *args)
    if failure:
        raise RuntimeError(f"{prepare}: {failure}")
    return peak


def try_peak_mb(prepare: str, *args: object, limit_mb: float | None = None) -> Outcome:
    """As `peak_mb`, but a process that fails is a result: `in_process` says how."""
    return in_process(f"{__name__}:_measure_here", prepare, args, limit_mb=limit_mb)


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


def _serve(function: str, args: str, limit_mb: str) -> None:
    """The other end of `in_process`. The last line that is printed is the value, or what went wrong."""
    if (limit := json.loads(limit_mb)) is not None:
        used = _resident_mb("VmData")
        resource.setrlimit(resource.RLIMIT_DATA, (int((used + limit) * MB),) * 2)
    module, name = function.split(":")
    try:
        value = getattr(import_module(module), name)(*json.loads(args))
    except (MemoryError, RuntimeError) as error:  # of torch: OutOfMemoryError on a GPU, one of no kind on a CPU
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        sys.exit(OUT_OF_MEMORY)
    print(json.dumps(value))


if __name__ == "__main__":
    import_module(__spec__.name)._serve(*sys.argv[1:])
