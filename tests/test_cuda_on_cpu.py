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


def test_affinity_refine(tmp_path):
    result = compile_and_run("affinity_refine", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "0 failures\n"


def test_a_wrong_kernel_is_seen(tmp_path):
    csrc = shutil.copytree(CSRC, tmp_path / "csrc")
    kernel = csrc / "affinity_refine" / "cuda.cu"
    right = "min(max(x + dx, 0), width - 1)"
    assert right in kernel.read_text()
    kernel.write_text(kernel.read_text().replace(right, "min(max(x - dx, 0), width - 1)"))
    result = compile_and_run("affinity_refine", tmp_path, csrc)
    assert result.returncode == 1
    assert "wrong: float64" in result.stdout
