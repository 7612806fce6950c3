"""Runs the CPU kernels under the address and undefined-behaviour sanitizers: `make asan`.

The package is built once more, in build/sanitized, and tests run on that: the contract's edges, layouts, neighbouring
memory, bad arguments and instruction sets, and drawn cases. A wrong access ends the process with a report. Arguments go
to pytest, `-k topk_pool` for one.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build" / "sanitized"
TESTS = "edges or every_instruction_set or any_layout or neighbouring or bad_arguments or nan_in or drawn_cases"


def build() -> None:
    """The package with sanitized libraries."""
    options = f"-DTOCO_CUDA=OFF -DTOCO_SANITIZE=ON {os.environ.get('CMAKE_ARGS', '')}"
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(BUILT / "base")]
    command += ["--build-lib", str(BUILT / "package")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"CMAKE_ARGS": options}, check=True)


def runtime(name: str) -> str:
    """A library of the compiler's, which must be loaded before Python itself."""
    asked = subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    return asked.stdout.strip()


def main() -> int:
    """Build and test; the exit code is pytest's."""
    build()
    environment = os.environ | {
        "PYTHONPATH": str(BUILT / "package"),
        "LD_PRELOAD": " ".join(map(runtime, ("libasan.so", "libubsan.so", "libstdc++.so"))),
        "ASAN_OPTIONS": "detect_leaks=0",  # of the interpreter there are many
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "1",
    }
    tests = [ROOT / "tests" / name for name in ("test_contract.py", "test_fuzz.py")]
    chosen = sys.argv[1:] or ["-k", TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-x", f"--rootdir={ROOT}", "-p", "no:cacheprovider", "-s"]
    # In a folder of its own, since Python looks for packages where it starts.
    return subprocess.run([*command, *map(str, tests), *chosen], cwd=BUILT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
