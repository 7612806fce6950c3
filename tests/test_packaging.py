"""What installing does: one wheel for every torch, nothing else touched, a slower package where tools are missing."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import compiled_before
import pytest

import toco_kernels
from toco_kernels import _library

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
import wheels  # noqa: E402

PACKAGE = Path(toco_kernels.__file__).parent
BUILD = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-inplace"  # of `make build`
SCHEMAS = Path(__file__).parent / "schemas.txt"
CPU_TORCH = "2.13.0"  # not the torch that the wheel is built beside


def run(*command, cwd=ROOT, **environment) -> str:
    """What `command` prints. It knows nothing of the environment variables that choose packages and compilers."""
    ours = ("PYTHONPATH", "CMAKE_ARGS", "CC", "CXX", "CUDACXX", "CUDA_HOME")
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=inherited | environment, text=True, capture_output=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def cmake_args(**options: str) -> str:
    """For builds from other sources that are the same as here: what `make build` has compiled is not compiled again."""
    launcher = ";".join([sys.executable, "-S", compiled_before.__file__, str(BUILD)])
    gpus = compiled_before.remembered(BUILD).get("CMAKE_CUDA_ARCHITECTURES", "90")
    launchers = {"CMAKE_CXX_COMPILER_LAUNCHER": launcher, "CMAKE_CUDA_COMPILER_LAUNCHER": launcher}
    options = {"CMAKE_CUDA_ARCHITECTURES": gpus, **launchers, **options}
    return shlex.join(f"-D{name}={value}" for name, value in options.items())


def test_objects_are_taken_only_where_nothing_differs(tmp_path):
    """Else the tests below would try something older than what they claim to."""
    made = BUILD / "CMakeFiles" / "kernels.dir" / "csrc" / "class_contrast" / "cpu.cpp.o"
    if not made.exists():
        pytest.skip("nothing was built here")
    known = compiled_before.remembered(BUILD)
    root = known["CMAKE_HOME_DIRECTORY"]
    here = tmp_path / "build"
    here.mkdir()
    (here / "CMakeCache.txt").write_text(f"CMAKE_HOME_DIRECTORY:INTERNAL={tmp_path}\n")
    shutil.copytree(Path(root, "csrc"), tmp_path / "csrc")
    ninja, name = known["CMAKE_MAKE_PROGRAM"], made.relative_to(BUILD)
    command = shlex.split(run(ninja, "-t", "commands", "-s", name, cwd=BUILD).replace(root, str(tmp_path)))

    found = compiled_before.find(BUILD, command, here)
    if not found:
        pytest.skip("what was built here is out of date")
    assert found[0] == made
    assert tmp_path / "csrc" / "class_contrast" / "row.h" in found[1]
    assert compiled_before.find(BUILD, [*command, "-DTOCO_ANOTHER"], here) is None
    with (tmp_path / "csrc" / "class_contrast" / "row.h").open("a") as header:
        header.write("// another\n")
    assert compiled_before.find(BUILD, command, here) is None


# What importing brings along


@pytest.mark.parametrize(
    ("before", "statement", "unwanted"),
    [
        ("pass", "import toco_kernels; toco_kernels.__all__", {"numpy", "torch", "triton"}),
        ("pass", "import toco_kernels.numpy", {"torch", "triton"}),
        # torch may import Triton itself; the rooms add nothing to that.
        (
            "import torch",
            "import toco_kernels; [getattr(toco_kernels, room) for room in toco_kernels.ROOMS]",
            {"triton"},
        ),
        ("import torch", "import toco_kernels.methods", {"timm", "triton", "sympy"}),
    ],
)
def test_importing_is_light(before, statement, unwanted):
    program = f"import sys; {before}; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    imported = {module.split(".")[0] for module in run(sys.executable, "-c", program).split()}
    assert "toco_kernels" in imported
    assert not imported & unwanted


# What other people's programs rely on


def test_schemas_are_as_published():
    for room in toco_kernels.ROOMS:
        getattr(toco_kernels, room)
    operators = [operator for operator in _library.OPERATORS.values() if operator.room in toco_kernels.ROOMS]
    schemas = "".join(sorted(f"{operator.overload._schema}\n" for operator in operators))
    assert schemas == SCHEMAS.read_text(), f"if the change is meant, tests/schemas.txt is to hold:\n\n{schemas}"


# What the compiler made


@pytest.mark.parametrize("name", ["_torch_cpu", "_torch_cuda"])
def test_library_needs_only_the_stable_abi_of_torch(name):
    library = PACKAGE / f"{name}.so"
    if not library.exists() or not shutil.which("nm"):
        pytest.skip(_library.NOT_LOADED.get(name, "no nm"))
    symbols = re.findall(r" U (\S+)", run("nm", "--dynamic", "--undefined-only", library))
    elsewhere = [symbol for symbol in symbols if "@" not in symbol]  # the C and C++ libraries put their version there
    assert elsewhere
    assert [symbol for symbol in elsewhere if not symbol.startswith(("aoti_torch_", "torch_"))] == []


def cuobjdump() -> str:
    triton = find_spec("triton")
    beside_triton = Path(triton.origin).parent / "backends" / "nvidia" / "bin" if triton else ""
    found = shutil.which("cuobjdump", path=os.pathsep.join([os.environ["PATH"], str(beside_triton)]))
    return found or pytest.skip("no cuobjdump, on the PATH or in Triton")


def local_memory(binary: Path) -> dict[str, int]:
    """Bytes of stack and local memory of every kernel in a binary: registers that spilled, arrays that never fitted."""
    usage = run(cuobjdump(), "--dump-resource-usage", binary)
    kernels = re.findall(r"Function (\S+):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert len(kernels) == usage.count("Function "), "cuobjdump prints something else now"
    return {f"{kernel} #{number}": int(stack) + int(local) for number, (kernel, stack, local) in enumerate(kernels)}


def test_no_cuda_kernel_spills():
    library = PACKAGE / "_torch_cuda.so"
    if not library.exists():
        pytest.skip(f"_torch_cuda: {_library.NOT_LOADED['_torch_cuda']}")
    kernels = local_memory(library)
    assert any("class_token_contrast" in kernel for kernel in kernels)
    assert {kernel: size for kernel, size in kernels.items() if size} == {}


def test_a_spill_is_seen(tmp_path):
    nvcc = shutil.which("nvcc", path=os.pathsep.join([os.environ["PATH"], "/usr/local/cuda/bin"]))
    if not nvcc:
        pytest.skip("no nvcc")
    source = tmp_path / "spill.cu"
    source.write_text("""
        __global__ void spill(float* x) {
          float kept[64];
          #pragma unroll
          for (int i = 0; i < 64; ++i) kept[i] = x[i * 32 + threadIdx.x];
          __syncthreads();
          #pragma unroll
          for (int i = 0; i < 64; ++i) x[threadIdx.x * 64 + i] = kept[i] * kept[63 - i];
        }""")
    binary = tmp_path / "spill.cubin"
    run(nvcc, "-arch=sm_90", "-maxrregcount=32", "-cubin", "-o", binary, source)
    assert [size > 0 for size in local_memory(binary).values()] == [True]


# What an installation leaves behind


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A source distribution, unpacked at a path with spaces; beside it the checkout that it was made from."""
    folder = tmp_path_factory.mktemp("a path with spaces")
    generated = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "_build.json", "__pycache__")
    shutil.copytree(ROOT, folder / "checkout", ignore=generated)
    run(sys.executable, "setup.py", "-q", "sdist", "-d", folder, cwd=folder / "checkout")
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder)
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source):
    """Built beside the installed torch."""
    options = ["--no-build-isolation", "--no-deps", "--quiet", "-w", source / "dist"]
    run(sys.executable, "-m", "pip", "wheel", *options, source, CMAKE_ARGS=cmake_args())
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def other_python(tmp_path_factory):
    """The interpreter of a fresh environment that holds another torch: CPU-only, and from another release."""
    if "_torch_cpu" in _library.NOT_LOADED:
        pytest.skip(f"nothing to try there: {_library.NOT_LOADED['_torch_cpu']}")
    query = ["install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", "-"]
    command = [sys.executable, "-m", "pip", *query, f"torch=={CPU_TORCH}"]
    found = subprocess.run(command, text=True, capture_output=True)
    if found.returncode != 0:
        pytest.skip(f"pip finds no torch {CPU_TORCH}: {found.stderr.strip().splitlines()[-1]}")
    url = json.loads(found.stdout)["install"][0]["download_info"]["url"]
    if not re.search(r"(\+|%2B)cpu", url):
        pytest.skip(f"pip finds no CPU-only build of torch {CPU_TORCH}")
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", f"torch=={CPU_TORCH}", "numpy", "pytest")
    return python


def what_runs(python, installed: Path) -> dict:
    """Whose kernels the package at `installed` uses. `python` runs elsewhere, and sees no editable install."""
    program = f"""if True:
        import json, sys
        sys.path.insert(0, {str(installed)!r})
        sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in str(finder)]
        import torch, toco_kernels, toco_kernels.numpy
        from toco_kernels._library import NOT_LOADED
        student = torch.randn(10, 8, requires_grad=True)
        toco_kernels.class_token_contrast(student, torch.randn(4, 8), torch.eye(2, 5), temperature=0.5).backward()
        assert student.grad.isfinite().all()
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        print(json.dumps({{
            "files": [module.__file__ for name, module in sys.modules.items() if name.startswith("toco_kernels")],
            "not loaded": NOT_LOADED,
            "CPU kernel": has_kernel("toco_kernels::class_token_contrast", "CPU"),
            "numpy kernel": toco_kernels.numpy._numpy is not None,
        }}))"""
    result = json.loads(run(python, "-I", "-c", program, cwd="/"))
    assert {file for file in result.pop("files") if not Path(file).is_relative_to(installed)} == set()
    return result


@pytest.mark.slow
def test_wheel_is_complete(source, wheel):
    files = set(zipfile.ZipFile(wheel).namelist())
    checkout = source.parent / "checkout"
    sources = {str(file.relative_to(checkout)) for file in checkout.glob("toco_kernels/**/*.py")}
    assert "toco_kernels/__init__.py" in sources
    sources |= {f"toco_kernels/_benchmarks/{file.name}" for file in checkout.glob("benchmarks/*.*") if file.is_file()}
    built = {f"toco_kernels/{name}.so" for name in ("_torch_cpu", "_torch_cuda") if name not in _library.NOT_LOADED}
    assert not (sources | built | {"toco_kernels/py.typed", "toco_kernels/_build.json"}) - files
    assert {file.split("/")[0] for file in files} == {
        "toco_kernels",
        f"toco_kernels-{toco_kernels.__version__}.dist-info",
    }


@pytest.mark.slow
def test_manylinux_wheel_brings_no_libraries_along(wheel, tmp_path):
    pytest.importorskip("auditwheel")
    wheels.repair(wheel, tmp_path)
    (repaired,) = tmp_path.glob("*.whl")
    assert re.search(r"-manylinux_2_\d+_", repaired.name)
    before, after = (
        {name for name in zipfile.ZipFile(file).namelist() if not name.endswith("/")} for file in (wheel, repaired)
    )
    assert after == before, "neither torch's libraries nor CUDA's"


@pytest.mark.slow
def test_wheel_of_pure_python_runs_the_references_and_writes_nothing(source, tmp_path):
    options = ["--no-build-isolation", "--no-deps", "--quiet", "-w", tmp_path]
    run(sys.executable, "-m", "pip", "wheel", *options, source, CMAKE_ARGS="-DTOCO_PURE=ON")
    (built,) = tmp_path.glob("*.whl")
    assert built.name.endswith("-py3-none-any.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(built).extractall(installed)
    before = sorted(installed.rglob("*"))
    result = what_runs(sys.executable, installed)
    why = "this is the wheel of pure Python, for machines that no other wheel is for"
    missing = dict.fromkeys(("_torch_cpu", "_torch_cuda"), why)
    assert result == {"not loaded": missing, "CPU kernel": False, "numpy kernel": False}
    assert [file for file in sorted(installed.rglob("*")) if "__pycache__" not in file.parts] == before


@pytest.mark.slow
def test_one_wheel_for_every_torch(wheel, other_python, tmp_path):
    def frozen():
        return run(other_python, "-m", "pip", "freeze").splitlines()

    before = frozen()
    run(other_python, "-m", "pip", "install", "--quiet", wheel)
    after = frozen()
    assert [re.split(" |=", line)[0] for line in after if line not in before] == ["toco-kernels"]
    assert not set(before) - set(after)

    has_cuda_kernels = "toco_kernels/_torch_cuda.so" in zipfile.ZipFile(wheel).namelist()
    result = what_runs(other_python, other_python.parents[1])
    why_no_cuda = result["not loaded"].pop("_torch_cuda")
    assert not has_cuda_kernels or why_no_cuda == "the installed torch has no CUDA"
    assert result == {"not loaded": {}, "CPU kernel": True, "numpy kernel": True}

    shutil.copytree(ROOT / "tests" / "rooms", tmp_path / "rooms")
    for name in ("conftest.py", "test_class_contrast.py", "golden/class_token_contrast.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tmp_path / name)
    run(other_python, "-m", "pytest", "-q", "-k", "golden", "test_class_contrast.py", cwd=tmp_path)


@pytest.mark.slow
def test_build_in_isolation_finds_the_installed_torch(source, other_python, tmp_path):
    """With the bindings of one room: those of the others include the same of torch, and take as long to compile."""
    one_room = tmp_path / "source"
    shutil.copytree(source, one_room, ignore=shutil.ignore_patterns("build", "dist"))
    for binding in (one_room / "python" / "torch_cpu").glob("*.cpp"):
        if binding.stem not in ("class_contrast", "isa"):
            binding.unlink()
    options = ["--quiet", "--no-deps", "--no-compile", "--target", tmp_path / "installed"]
    run(other_python, "-m", "pip", "install", *options, one_room, CMAKE_ARGS=cmake_args())
    result = what_runs(other_python, tmp_path / "installed")
    why_no_cuda = "the installed torch has no CUDA"
    assert result == {"not loaded": {"_torch_cuda": why_no_cuda}, "CPU kernel": True, "numpy kernel": True}


@pytest.mark.slow
def test_without_nvcc_the_rest_is_built(source, tmp_path):
    """What CMake decides there; every reason has a remedy in `doctor`, as tests/test_doctor.py holds it to."""
    cmake = shutil.which("cmake", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    torch = Path(find_spec("torch").origin).parent
    if not cmake or not (torch / "lib" / "libtorch_cuda.so").exists():
        pytest.skip("no CMake, or a torch without CUDA")
    options = {"TOCO_PACKAGE_DIR": tmp_path, "TORCH_ROOT": torch, "Python_EXECUTABLE": sys.executable}
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    run(cmake, "-G", "Ninja", "-S", source, "-B", tmp_path / "build", *definitions, CUDACXX="/no/nvcc/here")
    missing = json.loads((tmp_path / "_build.json").read_text())["missing"]
    assert missing["_torch_cpu"] == ""
    assert missing["_torch_cuda"] == "no nvcc was found, or it does not work with the C++ compiler"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tools", "why"),
    [
        (("cmake", "ninja"), "no C++ compiler was found"),
        (("cmake",), "ninja was not found when toco_kernels was installed"),
        ((), "cmake was not found when toco_kernels was installed"),
    ],
)
def test_without_tools_it_installs_and_says_so(source, tmp_path, tools, why):
    """Seen from here there are only these tools: Python too is a link, since its folder may hold others."""
    path = tmp_path / "bin"
    path.mkdir()
    here = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    for tool in ("cat", "env", "ls", "mkdir", "rm", "sh", "uname", *tools):
        (path / tool).symlink_to(shutil.which(tool, path=here) or pytest.skip(f"no {tool} on this machine"))
    python = path / "python"
    python.symlink_to(sys.executable)
    folders = ["--build-base", tmp_path / "build", "--build-lib", tmp_path / "installed"]  # the command that pip gives
    packages = sysconfig.get_path("purelib")
    run(python, "setup.py", "-q", "build", *folders, cwd=source, PATH=str(path), PYTHONPATH=packages)
    missing = json.loads((tmp_path / "installed" / "toco_kernels" / "_build.json").read_text())["missing"]
    assert missing == dict.fromkeys(("_torch_cpu", "_torch_cuda", "_numpy"), why)
    assert not [*(tmp_path / "installed").rglob("*.so")]


def test_hooks_use_the_pinned_tools():
    hooks = re.findall(r"[\w-]+==[\w.]+", (ROOT / ".pre-commit-config.yaml").read_text())
    project = re.findall(r"[\w-]+==[\w.]+", (ROOT / "pyproject.toml").read_text())
    assert hooks
    assert set(hooks) <= set(project)
