"""python -m toco_kernels doctor, and the command line itself."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toco_kernels
from toco_kernels import _library
from toco_kernels.__main__ import main
from toco_kernels.class_contrast import reference
from toco_kernels.cli import COMMANDS, doctor, format_table

ROOT = Path(__file__).parents[1]
NO_GPU = doctor.Gpu(None, None, None, "No CUDA GPUs are available")
SOME_GPU = doctor.Gpu("NVIDIA H200", "580.65", (9, 0), "")
IMPLEMENTATIONS = {"C++ (AVX-512)", "C++ (AVX2)", "C++ (portable)", "CUDA C++", "Triton", "reference"}


@pytest.fixture(scope="module")
def report():
    return doctor.report()


def test_report_has_every_operator_on_every_device(report):
    seen = [(row["operator"], row["device"]) for row in report["operators"]]
    assert sorted(seen) == sorted((name, device) for name in _library.OPERATORS for device in ("CPU", "CUDA"))
    assert {row["room"] for row in report["operators"]} == set(toco_kernels.ROOMS)
    for row in report["operators"]:
        assert row["implementation"] in IMPLEMENTATIONS
        assert row["reason"]
    assert report["numpy"]["functions"] == toco_kernels.numpy.__all__
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["toco_kernels"] == toco_kernels.__version__


def test_json_and_text_say_the_same(report, capsys):
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for row in report["operators"]:
        columns = (row["operator"], row["device"], row["implementation"], row["reason"])
        assert re.search(r"^" + r" +".join(map(re.escape, columns)) + "$", text, re.MULTILINE), text
    for version in (torch.__version__, toco_kernels.__version__, *report["advice"]):
        assert version in text


@pytest.mark.skipif("_torch_cpu" in _library.NOT_LOADED, reason="the C++ kernels are not built")
@pytest.mark.parametrize(("limit", "name"), list(enumerate(doctor.ISA)))
def test_names_the_instruction_set_in_use(limit, name):
    limit_isa = torch.ops.toco_kernels.limit_isa
    best = limit_isa(-1)
    try:
        if limit_isa(limit) != limit:
            pytest.skip(f"this processor has no {name}")
        assert doctor.on_cpu("class_token_contrast").implementation == f"C++ ({name})"
    finally:
        limit_isa(best)


def test_without_any_library(tmp_path):
    """A checkout that was never built: the operators work, and doctor says what would make them faster."""
    shutil.copytree(
        ROOT / "toco_kernels",
        tmp_path / "toco_kernels",
        ignore=shutil.ignore_patterns("*.so", "_build.json", "__pycache__"),
    )
    inputs = torch.arange(12.0).reshape(6, 2) / 10, torch.ones(4, 2), torch.tensor([[1, 1, 0], [1, 1, 1]])
    script = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in finder.__module__]  # they know the built one
import torch
import toco_kernels.numpy
from toco_kernels.__main__ import main

assert toco_kernels.__path__ == [{str(tmp_path / "toco_kernels")!r}], toco_kernels.__path__
tensors = {tuple(tensor.tolist() for tensor in inputs)}
student, teacher, flags = map(torch.tensor, tensors)
print(toco_kernels.class_token_contrast(student.requires_grad_(), teacher, flags, temperature=0.5).item())
arrays = [tensor.detach().numpy() for tensor in (student, teacher, flags)]
print(toco_kernels.numpy.class_token_contrast(*arrays, temperature=0.5)[0])
assert main(["doctor", "--json"]) == 0
assert "timm" not in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    child = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    on_tensors, on_arrays, report = child.stdout.split("\n", 2)
    expected = reference.class_token_contrast(*inputs, 0.5).item()
    assert float(on_tensors) == pytest.approx(expected, rel=1e-6)
    assert float(on_arrays) == pytest.approx(expected, rel=1e-6)
    report = json.loads(report)
    assert report["operators"]
    for row in [*report["operators"], report["numpy"]]:
        if row["implementation"] != "Triton":  # which nobody builds
            assert row["implementation"] == "reference"
            assert "not built" in row["reason"] or "Triton" in row["reason"] or "no CUDA" in row["reason"]
    assert report["versions"]["built_with"] == {}
    assert "pip install --no-build-isolation --force-reinstall --no-deps ." in report["advice"][-1]


def reasons_of_the_build():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    setup = (ROOT / "setup.py").read_text()
    return sorted({*re.findall(r'_missing "([^"]+)"', cmake), *re.findall(r'LIBRARIES, "([^"]+)"', setup)})


@pytest.mark.parametrize(
    "reason",
    [
        *reasons_of_the_build(),
        "not built: this checkout was never installed",
        "could not be loaded: _torch_cpu.so: undefined symbol",
        "built with CUDA 14.0, but torch has CUDA 13.0, whose drivers may be too old for it",
    ],
)
def test_every_reason_of_the_build_has_a_remedy(reason):
    steps = doctor.advice([reason, reason], SOME_GPU)
    assert steps[-1] == doctor.REBUILD
    assert len(set(steps)) == len(steps)
    if "nvcc" in reason and torch.version.cuda:
        assert f"cuda-toolkit-{torch.version.cuda.split('.')[0]} " in steps[0]


def test_the_build_still_spells_its_reasons_as_this_test_reads_them():
    assert len(reasons_of_the_build()) >= 7


def test_advice_is_silent_where_nothing_can_be_gained():
    assert doctor.advice(["the installed torch has no CUDA"], NO_GPU) == []
    assert doctor.advice(["the installed torch has no CUDA"], SOME_GPU) != []
    assert (
        doctor.advice(["built with GNU 12.2.0; never imports torch", "this operator has no C++ kernel"], NO_GPU) == []
    )


@pytest.fixture
def scratch_operator():
    library = torch.library.Library("toco_kernels", "FRAGMENT")
    library.define("doctor_scratch(Tensor x) -> Tensor")
    library.impl("doctor_scratch", torch.clone, "CompositeExplicitAutograd")
    yield "doctor_scratch", library
    library._destroy()


def test_a_kernel_from_python_is_triton(scratch_operator, monkeypatch):
    name, library = scratch_operator
    assert doctor.on_cpu(name).implementation == "reference"
    assert doctor.on_cuda(name, SOME_GPU).implementation == "reference"
    library.impl(name, torch.clone, "CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_library, "find_spec", lambda name: object())
    assert doctor.on_cuda(name, SOME_GPU) == ("Triton", "compiled on first use")
    assert "no GPU to use: No CUDA GPUs are available" in doctor.on_cuda(name, NO_GPU).reason
    old = doctor.on_cuda(name, doctor.Gpu("Tesla T4", "580.65", (7, 5), ""))
    assert old == ("reference", "Triton needs compute capability 8.0, this GPU has 7.5")
    monkeypatch.setattr(_library, "find_spec", lambda name: None)
    assert doctor.on_cuda(name, SOME_GPU).implementation == "reference"
    assert doctor.advice([doctor.on_cuda(name, SOME_GPU).reason], SOME_GPU) == ["pip install triton"]


def test_finds_the_gpu_through_its_driver(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.65.06'\necho 'NVIDIA H200, 580.65.06'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    gpu = doctor.Gpu.find()
    assert gpu.driver == "580.65.06"
    assert gpu.name == (torch.cuda.get_device_name() if torch.cuda.is_available() else "NVIDIA H200")
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert doctor.Gpu.find().driver is None


def test_a_cuda_kernel_and_the_gpu(monkeypatch):
    build = {"nvcc": "13.0", "cuda_architectures": "80-real, 90-real, 100-real, 120"}
    monkeypatch.setattr(doctor, "has_kernel", lambda *_: True)
    monkeypatch.setattr(_library, "build_info", lambda: build)
    expected = "built with nvcc 13.0 for 80-real, 90-real, 100-real, 120"
    assert doctor.on_cuda("an_operator", SOME_GPU) == ("CUDA C++", expected)
    assert doctor.on_cuda("an_operator", NO_GPU) == (
        "CUDA C++",
        f"{expected}; no GPU to use: No CUDA GPUs are available",
    )
    old = doctor.Gpu("Tesla T4", "580.65", (7, 5), "")
    answer = doctor.on_cuda("an_operator", old)
    assert "it will fail: there is no machine code for Tesla T4" in answer.reason
    assert "CMAKE_CUDA_ARCHITECTURES=native" in doctor.advice([answer.reason], old)[0]


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("80-real, 90-real, 100-real, 120", (8, 0), True),
        ("80-real, 90-real, 100-real, 120", (8, 9), True),  # machine code serves later minor versions
        ("80-real, 90-real, 100-real, 120", (7, 5), False),
        ("80-real, 90-real, 100-real, 120", (11, 0), False),  # between 100's machine code and 120's PTX
        ("80-real, 90-real, 100-real, 120", (13, 0), True),  # from PTX
        ("90", (8, 9), False),
        ("90", (10, 3), True),
        ("90-real", (10, 0), False),
        ("80-virtual", (9, 0), True),
        ("native", (7, 5), True),
    ],
)
def test_runs_on(architectures, capability, expected):
    assert doctor.runs_on(architectures, capability) is expected


def test_table():
    assert format_table([["a", "bc"], ["def", "g"], ["h", ""]]) == "a    bc\ndef  g\nh"


def test_help_is_instant():
    """It lists every command and imports none of them, nor torch."""
    script = """
import sys
from toco_kernels.__main__ import main
try:
    main(["--help"])
finally:
    assert "torch" not in sys.modules
"""
    child = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    for command in COMMANDS:
        assert command in child.stdout.split()


def test_a_reader_that_has_read_enough_is_no_error():
    """As in `doctor | head`."""
    command = [sys.executable, "-m", "toco_kernels", "doctor"]
    reader, writer = os.pipe()
    os.close(reader)
    child = subprocess.run(command, check=False, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert child.stderr == ""


@pytest.mark.parametrize(("argv", "message"), [([], "command"), (["docter"], "docter"), (["doctor", "--jsn"], "--jsn")])
def test_bad_arguments_are_named(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
