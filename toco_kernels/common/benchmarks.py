"""The bench files of `benchmarks/`, which a wheel carries inside the package."""

import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Where they are.

    Raises:
        FileNotFoundError: neither in the package nor beside it.
    """
    for place in (PACKAGE / "_benchmarks", PACKAGE.parent / "benchmarks"):
        if (place / "harness.py").exists():
            return place
    raise FileNotFoundError(f"the benchmarks are not in {PACKAGE} and not beside it: reinstall toco_kernels")


def make_importable() -> None:
    """Their modules import each other by plain names, here and in processes that this one starts."""
    place = str(folder())
    if place not in sys.path:
        sys.path.insert(0, place)
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
