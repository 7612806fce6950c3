"""Hands csrc/ and python/ to CMake; everything else about the package is in pyproject.toml.

What this machine cannot build (no compiler, no nvcc, no torch) is left out, and the package works without it, slower:
`python -m toco_kernels doctor` says what is missing. What it can build must build: a compile error is an error.
Options for CMake go into the environment variable CMAKE_ARGS, as usual; -DTOCO_PURE=ON there makes a wheel without
libraries, for every platform.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
LIBRARIES = ("_torch_cpu", "_torch_cuda", "_numpy")
OLDEST_TORCH = (2, 11)
PURE = "-DTOCO_PURE=ON" in shlex.split(os.environ.get("CMAKE_ARGS", ""))


def find_package(name):
    """Where `name` is installed. It is not imported, and a build in isolation still finds what the user has:
    so nobody downloads a second torch only to compile against it."""
    spec = importlib.util.find_spec(name)
    places = [Path(spec.origin).parent] if spec and spec.origin else []
    folders = [*site.getsitepackages([sys.prefix, sys.base_prefix]), site.getusersitepackages()]
    places += [Path(folder) / name for folder in folders]
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


def missing_from(package):
    """The libraries that could not be built, and why."""
    missing = json.loads((package / "_build.json").read_text())["missing"]
    return {library: why for library, why in missing.items() if why}


class BuildPython(build_py):
    """The package, and in it the benchmarks, which `python -m toco_kernels bench` and `memory` run."""

    def run(self):
        super().run()
        if self.editable_mode:  # the checkout has them
            return
        package = Path(self.build_lib) / "toco_kernels"
        for source, target in self.benchmarks():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        if PURE:
            why = "this is the wheel of pure Python, for machines that no other wheel is for"
            (package / "_build.json").write_text(json.dumps({"missing": dict.fromkeys(LIBRARIES, why)}))

    def benchmarks(self):
        sources = [file for pattern in ("*.py", "*.cpp", "*.ini") for file in (ROOT / "benchmarks").glob(pattern)]
        return [(file, Path(self.build_lib) / "toco_kernels" / "_benchmarks" / file.name) for file in sources]

    def get_outputs(self, include_bytecode=True):
        copied = [] if self.editable_mode else [str(target) for _, target in self.benchmarks()]
        return [*super().get_outputs(include_bytecode), *copied]


class CMakeBuild(build_ext):
    def run(self):
        package = ROOT if self.inplace else Path(self.build_lib).resolve()
        package /= "toco_kernels"
        package.mkdir(parents=True, exist_ok=True)
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        if cmake and ninja:
            self.compile(cmake, ninja, package)
        else:
            why = f"{'ninja' if cmake else 'cmake'} was not found when toco_kernels was installed"
            (package / "_build.json").write_text(json.dumps({"missing": dict.fromkeys(LIBRARIES, why)}))
        for library, why in missing_from(package).items():
            self.warn(f"toco_kernels: {library} is not built, the package will be slower: {why}")
            for stale in package.glob(f"{library}*.so"):
                stale.unlink()

    def compile(self, cmake, ninja, package):
        options = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_BUILD_TYPE=Release"]
        options += [f"-DTOCO_PACKAGE_DIR={package}", f"-DPython_EXECUTABLE={sys.executable}", *torch_options()]
        if pybind11 := find_package("pybind11"):
            options.append(f"-Dpybind11_DIR={pybind11 / 'share' / 'cmake' / 'pybind11'}")
        options += shlex.split(os.environ.get("CMAKE_ARGS", ""))

        # A folder that outlives the build, so that the next one compiles only what changed. What CMake remembers of
        # options and compilers serves only the same question, and only where nothing was missing. Wheels for several
        # Pythons share it: only _numpy differs.
        kind = f"{sys.implementation.cache_tag}-inplace" if self.inplace else "wheel"
        if "-DTOCO_SANITIZE=ON" in options:
            kind = f"{sys.implementation.cache_tag}-sanitized"
        build = ROOT / "build" / f"cmake-{kind}"
        build.mkdir(parents=True, exist_ok=True)
        variables = ("PATH", "CXX", "CXXFLAGS", "CUDACXX", "CUDAFLAGS", "CUDA_HOME")
        environment = [f"{name}={os.environ.get(name)}" for name in variables]
        question, asked = "\n".join([cmake, str(ROOT), *options, *environment]), build / "asked.txt"
        if not asked.exists() or asked.read_text() != question:
            (build / "CMakeCache.txt").unlink(missing_ok=True)
        subprocess.run([cmake, "-S", ROOT, "-B", build, *options], check=True)
        asked.write_text("" if missing_from(package) else question)
        subprocess.run([cmake, "--build", build], check=True)

    def get_outputs(self):
        package = Path(self.build_lib) / "toco_kernels"
        return [str(path) for pattern in ("*.so", "_build.json") for path in package.glob(pattern)]

    def get_output_mapping(self):  # editable installs: the libraries are already where they are imported from
        return {}


setup(
    ext_modules=[] if PURE else [Extension("toco_kernels._numpy", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPython},
)
