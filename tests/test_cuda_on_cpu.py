"""CUDA kernels whose threads do not exchange data run on the CPU, under the address sanitizer, without a GPU."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "cuda_on_cpu"
CSRC = HERE.parents[1] / "csrc"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++") or not CSRC.is_dir(), reason="no g++, or no sources"),
]


def compile_and_run(program, tmp_path, csrc=CSRC):
    sources = [str(HERE / f"{program}.cpp"), *map(str, (csrc / program).glob("*.cpp"))]
    flags = ["-std=gnu++17", "-O1", "-g", "-fsanitize=address,undefined", "-w", f"-I{HERE}", f"-I{csrc}"]
    subprocess.run(["g++", *flags, *sources, "-o", str(tmp_path / "program")], check=True)
    return subprocess.run([str(tmp_path / "program")], capture_output=True, text=True)


@pytest.mark.parametrize("program", ["affinity_refine", "topk_pool"])
def test_kernels(program, tmp_path):
    result = compile_and_run(program, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "0 failures\n"


@pytest.mark.parametrize(
    ("program", "file", "right", "wrong", "seen"),
    [
        (
            "affinity_refine",
            "cuda.cu",
            "min(max(x + dx, 0), width - 1)",
            "min(max(x - dx, 0), width - 1)",
            "wrong: float64",
        ),
        (
            "topk_pool",
            "cuda_select.h",
            "patch < other_patch",
            "patch > other_patch",
            "wrong: float32, indices",
        ),
    ],
)
def test_a_wrong_kernel_is_seen(program, file, right, wrong, seen, tmp_path):
    csrc = shutil.copytree(CSRC, tmp_path / "csrc")
    kernel = csrc / program / file
    assert kernel.read_text().count(right) == 1
    kernel.write_text(kernel.read_text().replace(right, wrong))
    result = compile_and_run(program, tmp_path, csrc)
    assert result.returncode == 1
    assert seen in result.stdout
