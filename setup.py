"""Hands csrc/ and python/ to CMake; everything else about the package is in pyproject.toml.

What this machine cannot build (no compiler, no nvcc, no torch) is left out, and the package works without it, slower:
`python -m toco_kernels doctor` says what is missing. What it can build must build: a compile error is an error.
Options for CMake go into the environment variable CMAKE_ARGS, as usual.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARIES = ("_torch_cpu", "_torch_cuda", "_numpy")
OLDEST_TORCH = (2, 11)


def find_package(name):
    """Where `name` is installed. It is not imported, and a build in isolation still finds what the user has:
    so nobody downloads a second torch only to compile against it."""
    spec = importlib.util.find_spec(name)
    places = [Path(spec.origin).parent] if spec and spec.origin else []
    places += [Path(sysconfig.get_path(key)) / name for key in ("platlib", "purelib")]
    return next((place for place in places if place.is_dir()), None)


def find_tool(name):
    beside_python = os.path.dirname(sys.executable)
    return shutil.which(name, path=os.pathsep.join([beside_python, os.environ.get("PATH", os.defpath)]))


def torch_options():
    torch = find_package("torch")
    if not torch or not (torch / "version.py").exists():
        return []
    version = re.search(r"__version__ = '([^']+)'", (torch / "version.py").read_text())[1]
    if tuple(map(int, version.split(".")[:2])) < OLDEST_TORCH:
        return []
    return [f"-DTORCH_ROOT={torch}", f"-DTORCH_VERSION={version}"]


class CMakeBuild(build_ext):
    def run(self):
        package = ROOT if self.inplace else Path(self.build_lib).resolve()
        package /= "toco_kernels"
        package.mkdir(parents=True, exist_ok=True)
        for stale in (path for name in LIBRARIES for path in package.glob(f"{name}*.so")):
            stale.unlink()
        cmake = find_tool("cmake")
        if not cmake:
            missing = dict.fromkeys(LIBRARIES, "cmake was not found when toco_kernels was installed")
            (package / "_build.json").write_text(json.dumps({"missing": missing}))
            return self.warn(f"toco_kernels: nothing compiled, the package will be slower: {missing['_torch_cpu']}")

        build = Path(self.build_temp).resolve()
        options = [f"-DTOCO_PACKAGE_DIR={package}", f"-DPython_EXECUTABLE={sys.executable}", *torch_options()]
        if pybind11 := find_package("pybind11"):
            options.append(f"-Dpybind11_DIR={pybind11 / 'share' / 'cmake' / 'pybind11'}")
        if ninja := find_tool("ninja"):
            options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        subprocess.run([cmake, "-S", ROOT, "-B", build, "-DCMAKE_BUILD_TYPE=Release", *options], check=True)
        subprocess.run([cmake, "--build", build, "--parallel"], check=True)

    def get_outputs(self):
        package = Path(self.build_lib) / "toco_kernels"
        return [str(path) for pattern in ("*.so", "_build.json") for path in package.glob(pattern)]

    def get_output_mapping(self):  # editable installs: the libraries are already where they are imported from
        return {}


setup(ext_modules=[Extension("toco_kernels._numpy", sources=[])], cmdclass={"build_ext": CMakeBuild})
