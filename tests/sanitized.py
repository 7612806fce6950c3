"""Runs the CPU kernels under the address and undefined-behaviour sanitizers: `make asan`.

    python tests/sanitized.py [--only OP] [--processes 2]

The package is built once more, in build/sanitized, and tests run on that: the contract's edges in every dtype and
instruction set, layouts, neighbouring memory, NaN and bad arguments, and drawn cases. A wrong access ends the process
that made it, another goes on with the other tests, and the last line is the verdict.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build" / "sanitized"
# Edges in float32 and half precision are among those for every instruction set.
TESTS = (
    "every_instruction_set or any_layout or neighbouring or bad_arguments or nan_in or drawn_cases "
    "or (test_edges and float64)"
)


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


def test(only: str | None, processes: int) -> int:
    """Run the tests; the exit code is pytest's."""
    reports = BUILT / "reports"
    reports.mkdir(exist_ok=True)
    for old in reports.iterdir():
        old.unlink()
    environment = os.environ | {
        "PYTHONPATH": str(BUILT / "package"),
        "LD_PRELOAD": " ".join(map(runtime, ("libasan.so", "libubsan.so", "libstdc++.so"))),
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={reports / 'asan'}",  # of the interpreter there are many leaks
        "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1:log_path={reports / 'ubsan'}",
        "OMP_NUM_THREADS": "1",
        "TOCO_UNOPTIMISED": "1",  # as it is compiled; some sums keep the contract's budget only as vectors
    }
    tests = [ROOT / "tests" / name for name in ("test_contract.py", "test_fuzz.py")]
    options = ["-q", f"--rootdir={ROOT}", "-p", "no:cacheprovider", "-n", str(processes), "--dist", "worksteal"]
    chosen = ["-k", f"({TESTS}) and ({only})" if only else TESTS]
    # In a folder of its own, since Python looks for packages where it starts.
    command = [sys.executable, "-m", "pytest", *options, *map(str, tests), *chosen]
    code = subprocess.run(command, cwd=BUILT, env=environment, check=False).returncode
    found = sorted(reports.iterdir())
    for report in found:
        print(f"\n{report}:\n{report.read_text(errors='replace')[:4000]}")
    verdict = "no wrong access, no undefined behaviour" if code == 0 and not found else "FAILED"
    print(f"sanitized {only or 'CPU kernels, all'}: {verdict}, {len(found)} reports")
    return code or bool(found)


def main() -> int:
    """Build and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="OP", help="the tests of this operator alone, as for pytest's -k")
    parser.add_argument("--processes", type=int, default=2, help="that test at the same time")
    args = parser.parse_args()
    build()
    return test(args.only, args.processes)


if __name__ == "__main__":
    sys.exit(main())
