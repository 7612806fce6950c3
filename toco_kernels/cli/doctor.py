"""`python -m toco_kernels doctor`: which implementation of each operator answers here, why, and what to do for more.

It reads what was built and what PyTorch's dispatcher holds, and runs no kernel: it cannot know that one works.
"""

import argparse
import json
import platform
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import numpy
import torch

from .. import ROOMS, __version__, _library
from .. import numpy as numpy_api
from . import format_table

ISA = ("portable", "AVX2", "AVX-512")  # the numbers of toco_kernels::limit_isa

REBUILD = (
    'in a checkout of toco_kernels: pip install "setuptools>=77" cmake ninja "pybind11>=3" && '
    "pip install --no-build-isolation --force-reinstall --no-deps ."
)
NVCC = (
    "get nvcc of CUDA {cuda}, as torch has, and put it first on the PATH: apt-get install cuda-toolkit-{cuda} "
    "(from NVIDIA's repository) or conda install -c conda-forge cuda-nvcc cuda-version={cuda}"
)
REMEDIES = {  # part of a reason -> what to do; the reasons are those of CMakeLists.txt, setup.py, _library.py, and ours
    "not built": [REBUILD],
    "could not be loaded": [REBUILD],
    "cmake was not found": [REBUILD],
    "wheel of pure Python": [REBUILD],
    "no C++ compiler": ["apt-get install g++ (or conda install -c conda-forge gxx)", REBUILD],
    "pybind11 or Python's headers": ["apt-get install python3-dev", REBUILD],
    "no torch >= 2.11": ['pip install --upgrade "torch>=2.11"', REBUILD],
    "torch has no CUDA": ["get a torch with CUDA: pip install --force-reinstall torch", REBUILD],
    "no nvcc": [NVCC, REBUILD],
    "built with CUDA": [NVCC, REBUILD],
    "switched off by TOCO_": ["take -DTOCO_CPU=OFF and -DTOCO_CUDA=OFF out of CMAKE_ARGS: unset CMAKE_ARGS", REBUILD],
    "no machine code for": ["export CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=native", REBUILD],
    "driver on your system is too old": ["update the NVIDIA driver, or install a torch for an older CUDA"],
    "Triton is not installed": ["pip install triton"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    findings = report()
    print(json.dumps(findings, indent=2) if args.json else as_text(findings))
    return 0


def report() -> dict:
    """Everything that doctor knows, under keys that do not change."""
    for room in ROOMS:
        import_module(f"toco_kernels.{room}")
    gpu = Gpu.find()
    operators = []
    for name, operator in sorted(_library.OPERATORS.items()):
        for device, answer in {"CPU": on_cpu(name), "CUDA": on_cuda(name, gpu)}.items():
            operators.append({"operator": name, "room": operator.room, "device": device} | answer._asdict())
    arrays = {"functions": numpy_api.__all__} | in_numpy()._asdict()
    return {
        "versions": {
            "toco_kernels": __version__,
            "built_with": {key: value for key, value in _library.build_info().items() if key != "missing"},
            "python": platform.python_version(),
            "numpy": numpy.__version__,
            "torch": torch.__version__,
            "torch_cuda": torch.version.cuda,
            "triton": import_module("triton").__version__ if find_spec("triton") else None,
            "gpu": gpu.name,
            "gpu_driver": gpu.driver,
        },
        "operators": operators,
        "numpy": arrays,
        "advice": advice((row["reason"] for row in [*operators, arrays]), gpu),
    }


def as_text(findings: dict) -> str:
    """The report for people."""
    versions = dict(findings["versions"])
    versions["built_with"] = ", ".join(f"{key} {value}" for key, value in versions["built_with"].items() if value)
    answers = [*findings["operators"], {"operator": "toco_kernels.numpy", "device": "CPU"} | findings["numpy"]]
    columns = ("operator", "device", "implementation", "reason")
    steps = [f"{number}. {step}" for number, step in enumerate(findings["advice"], 1)]
    return "\n".join(
        [
            format_table([(name, value or "none") for name, value in versions.items()]),
            "",
            format_table([columns, *([row[column] for column in columns] for row in answers)]),
            "",
            *(["To get what is missing:", *steps] if steps else ["Nothing to do."]),
        ]
    )


@dataclass(frozen=True)
class Gpu:
    """The first NVIDIA GPU, as far as it can be seen."""

    name: str | None
    driver: str | None
    capability: tuple[int, int] | None
    problem: str  # why torch cannot use it; empty when it can

    @classmethod
    def find(cls) -> "Gpu":
        """Ask the driver's tool whether there is a GPU, which a torch without CUDA cannot see, and torch to use it."""
        name = driver = None
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
            answer = subprocess.run(query, check=False, capture_output=True, text=True)
            if answer.returncode == 0 and answer.stdout.strip():
                name, driver = answer.stdout.splitlines()[0].rsplit(", ", 1)
        if torch.version.cuda is None:
            return cls(name, driver, None, "the installed torch has no CUDA")
        try:
            return cls(torch.cuda.get_device_name(), driver, torch.cuda.get_device_capability(), "")
        except RuntimeError as error:
            return cls(name, driver, None, str(error).split(". ")[0])


class Answer(NamedTuple):
    """What answers when an operator is called, and why."""

    implementation: str
    reason: str


def on_cpu(operator: str) -> Answer:
    """What answers on the CPU."""
    if not has_kernel(operator, "CPU"):
        return Answer("reference", _library.NOT_LOADED.get("_torch_cpu", "this operator has no C++ kernel"))
    return Answer(cpp(), f"built with {built_with('compiler')}; the best that this processor can do")


def on_cuda(operator: str, gpu: Gpu) -> Answer:
    """What answers on a CUDA device, or would if there were one."""
    if not has_kernel(operator, "CUDA"):
        return Answer("reference", _library.NOT_LOADED.get("_torch_cuda", "this operator has no CUDA kernel"))
    if not is_from_python(operator, "CUDA"):
        architectures = built_with("cuda_architectures")
        name, reason = "CUDA C++", f"built with nvcc {built_with('nvcc')} for {architectures}"
        if gpu.capability and not runs_on(architectures, gpu.capability):
            reason += f"; it will fail: there is no machine code for {gpu.name}"
    elif why_not := _library.why_not_triton(gpu.capability or (8, 0)):
        return Answer("reference", why_not)
    else:
        name, reason = "Triton", "compiled on first use"
    return Answer(name, f"{reason}; no GPU to use: {gpu.problem}" if gpu.problem else reason)


def in_numpy() -> Answer:
    """What answers in toco_kernels.numpy."""
    try:
        import_module("toco_kernels._numpy")
    except ModuleNotFoundError:
        why = _library.build_info().get("missing", {}).get("_numpy") or "not built for this Python"
        return Answer("reference", f"{why}; the first call imports torch")
    except ImportError as error:
        return Answer("reference", f"could not be loaded: {error}")
    return Answer(cpp(), f"built with {built_with('compiler')}; never imports torch")


def built_with(key: str) -> str:
    """One entry of what the build wrote down."""
    return _library.build_info().get(key) or "unknown"


def has_kernel(operator: str, device: str) -> bool:
    """Whether a kernel is registered for this device alone; the reference, registered for all of them, is not."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{_library.NAMESPACE}::{operator}", device)


def is_from_python(operator: str, device: str) -> bool:
    """Whether Python registered that kernel. Then it launches Triton: C++ and CUDA register from their library."""
    return f"{_library.NAMESPACE}/{operator}/{device}" in torch.library._impls


def cpp() -> str:
    """The name of the C++ kernels, with the instruction set they use."""
    if "_torch_cpu" in _library.NOT_LOADED:  # only it can tell
        return "C++"
    return f"C++ ({ISA[torch.ops.toco_kernels.limit_isa(-1)]})"


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code compiled for CMake's list of architectures runs on a GPU of this compute capability.

    `80-real` is machine code, for GPUs of the same major version and no older; `80-virtual` is PTX, which the driver
    compiles for any GPU that is no older; `80` is both.
    """
    for architecture in architectures.split(", "):
        number, _, kind = architecture.partition("-")
        if not number.isdigit():
            return True  # "native" or "90a": whoever asks for that knows the GPU
        major, minor = divmod(int(number), 10)
        if (major, minor) <= capability and (kind != "real" or major == capability[0]):
            return True
    return False


def advice(reasons: Iterable[str], gpu: Gpu) -> list[str]:
    """What to do, step by step, to get everything that these reasons say is missing."""
    steps = []
    for reason in reasons:
        if "torch has no CUDA" in reason and gpu.name is None:
            continue  # there is nothing to gain
        for part, remedy in REMEDIES.items():
            if part in reason:
                steps += [step.format(cuda=(torch.version.cuda or "").split(".")[0]) for step in remedy]
    return sorted(dict.fromkeys(steps), key=lambda step: step == REBUILD)  # once, when all else is there
