"""`python -m toco_kernels doctor`: which implementation of each operator answers here, why, and how to get a faster one.

It reads what was built and what the dispatcher holds; it runs no kernel.
"""

import argparse
import json
import platform
from importlib import import_module
from importlib.util import find_spec

import numpy
import torch

from .. import ROOMS, __version__, _library
from .. import numpy as numpy_api
from . import format_table

ISA = ("portable", "AVX2", "AVX-512")  # what limit_isa's numbers mean

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."

# A piece of a reason for something missing -> what to do about it, before REBUILD. The reasons are those of
# CMakeLists.txt, setup.py, _library.py and torch.
REMEDIES = {
    "cmake was not found": 'install the build tools: pip install "setuptools>=77" cmake ninja "pybind11>=3"',
    "pybind11 or Python's headers": (
        'install pybind11 and Python\'s headers: pip install "pybind11>=3"; apt-get install python3-dev'
    ),
    "no C++ compiler": "install a C++ compiler: apt-get install g++, or conda install -c conda-forge gxx",
    "no torch >= 2.11": 'install torch: pip install "torch>=2.11"',
    "no nvcc": (
        "install nvcc of torch's CUDA {cuda}: apt-get install cuda-toolkit-{cuda} (from NVIDIA's repository), "
        "or conda install -c conda-forge cuda-nvcc cuda-version={cuda}; put it on the PATH"
    ),
    "built with CUDA": (
        "use nvcc of torch's CUDA {cuda}: apt-get install cuda-toolkit-{cuda} (from NVIDIA's repository), "
        "or conda install -c conda-forge cuda-nvcc cuda-version={cuda}; put it first on the PATH"
    ),
    "switched off by TOCO_CPU": "take -DTOCO_CPU=OFF out of the environment: unset CMAKE_ARGS",
    "switched off by TOCO_CUDA": "take -DTOCO_CUDA=OFF out of the environment: unset CMAKE_ARGS",
    "torch has no CUDA": "install a torch with CUDA: pip install --force-reinstall torch (see pytorch.org/get-started)",
    "no machine code for": "compile for the GPU at hand: export CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=native",
    "driver on your system is too old": "update the NVIDIA driver, or install a torch for an older CUDA",
    "Triton is not installed": "install Triton: pip install triton",
}
NO_REBUILD = ("driver on your system is too old", "Triton is not installed")  # where that alone helps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    found = report()
    print(json.dumps(found, indent=2) if args.json else as_text(found))
    return 0


def report() -> dict:
    """Everything that doctor knows, under keys that do not change."""
    for room in ROOMS:
        import_module(f"toco_kernels.{room}")
    gpu = Gpu.find()
    operators = [
        {"operator": name, "room": operator.room, "device": device, "implementation": implementation, "reason": reason}
        for name, operator in sorted(_library.OPERATORS.items())
        for device, (implementation, reason) in {"CPU": on_cpu(name), "CUDA": on_cuda(name, gpu)}.items()
    ]
    implementation, reason = in_numpy()
    in_numpy_row = {"functions": numpy_api.__all__, "implementation": implementation, "reason": reason}
    return {
        "versions": {
            "toco_kernels": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch_cuda": torch.version.cuda,
            "gpu": gpu.name,
            "driver": gpu.driver,
            "triton": import_module("triton").__version__ if find_spec("triton") else None,
            "numpy": numpy.__version__,
            "built_with": {key: value for key, value in _library.build_info().items() if key != "missing"},
        },
        "operators": operators,
        "numpy": in_numpy_row,
        "advice": advice([row["reason"] for row in [*operators, in_numpy_row]], gpu),
    }


def as_text(found: dict) -> str:
    """The report for people."""
    versions = {key: value or "none" for key, value in found["versions"].items() if key != "built_with"}
    built_with = found["versions"]["built_with"]
    versions["built with"] = ", ".join(f"{key} {value}" for key, value in built_with.items() if value) or "nothing"
    rows = [(row["operator"], row["device"], row["implementation"], row["reason"]) for row in found["operators"]]
    rows.append(("toco_kernels.numpy", "CPU", found["numpy"]["implementation"], found["numpy"]["reason"]))
    lines = [
        *(
            f"{name.replace('_', ' ') if name != 'toco_kernels' else name:13} {value}"
            for name, value in versions.items()
        ),
        "",
        format_table(("operator", "device", "implementation", "why"), rows),
        "",
        *(["To get what is missing, in a checkout of toco_kernels:"] if found["advice"] else ["Nothing is missing."]),
        *(f"  {number}. {step}" for number, step in enumerate(found["advice"], 1)),
    ]
    return "\n".join(lines)
