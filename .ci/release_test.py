"""Tries the wheels of dist/ as a user would: `make release-test`, after `make wheel`.

    python .ci/release_test.py [--torch SPEC …] [--dist DIR]

For each torch (by default the oldest that is served, and the newest) a fresh environment with this Python, in a path
with spaces: the wheel for this Python is installed beside that torch, `doctor` must name kernels, and tests/smoke.py
must pass, which takes less than a minute. Then the wheel of pure Python, in the last of the environments.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_AND_NEWEST = ["torch==2.11.*", "torch"]
SMOKE_SECONDS = 60


def run(*command: object, **options) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, cwd="/", **options)
    if done.returncode != 0:
        raise SystemExit(f"FAILED: {' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def environment(folder: Path, torch: str) -> Path:
    """The interpreter of a fresh environment with a torch, NumPy and pytest, which the rooms' descriptions import."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", torch, "numpy", "pytest")
    return python


def try_wheel(python: Path, wheel: Path, *, compiled: bool) -> None:
    """Install it, ask `doctor`, and run the smoke test."""
    run(python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel)
    report = json.loads(run(python, "-I", "-m", "toco_kernels", "doctor", "--json"))
    on_cpu = {row["implementation"] for row in report["operators"] if row["device"] == "CPU"}
    if compiled == ("reference" in on_cpu):
        raise SystemExit(f"FAILED: {wheel.name}: on the CPU {sorted(on_cpu)} answer")
    said = run(python, ROOT / "tests" / "smoke.py", timeout=10 * SMOKE_SECONDS).splitlines()[-1]
    print(f"{wheel.name}, torch {report['versions']['torch']}: {said}", flush=True)


def main() -> None:
    """Try all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", nargs="+", default=OLDEST_AND_NEWEST, metavar="SPEC", help="as for pip")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the wheels are")
    args = parser.parse_args()
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    (compiled,) = args.dist.glob(f"*-{tag}-*manylinux*.whl")
    (pure,) = args.dist.glob("*-py3-none-any.whl")
    with tempfile.TemporaryDirectory(prefix="a path with spaces ") as folder:
        for number, torch in enumerate(args.torch):
            python = environment(Path(folder) / f"environment {number}", torch)
            try_wheel(python, compiled, compiled=True)
        try_wheel(python, pure, compiled=False)


if __name__ == "__main__":
    main()
