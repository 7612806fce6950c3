"""What a number was measured on."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from toco_kernels._library import build_info
from toco_kernels.cli.doctor import ISA


def describe() -> dict:
    """The machine, with `name` for the name of its file of results."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu, isa, cores = _cpu(), _isa(), os.cpu_count()
    return {
        "name": re.sub(r"[^a-z0-9]+", "-", (gpu or f"{cpu} {isa} {cores} cores").lower()),
        "cpu": cpu,
        "isa": isa,
        "cores": cores,
        "gpu": gpu,
        "driver": _driver() if gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "compiler": build_info().get("compiler"),
        "os": platform.platform(),
    }


def _cpu() -> str:
    with open("/proc/cpuinfo") as lines:
        model = next((line.split(":")[1] for line in lines if line.startswith("model name")), platform.machine())
    return re.sub(r"\((R|TM)\)|@.*", "", model).strip()


def _isa() -> str:
    """The instruction set that kernels use here: virtual machines of one name differ in it."""
    limit_isa = getattr(torch.ops.toco_kernels, "limit_isa", None)
    return ISA[limit_isa(-1)] if limit_isa else "no kernels"


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
