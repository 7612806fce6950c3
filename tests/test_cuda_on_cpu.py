"""CUDA kernels on the CPU, under sanitizers: threads take turns, and may meet at barriers. No GPU is needed."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "cuda_on_cpu"
CSRC = HERE.parents[1] / "csrc"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++") or not CSRC.is_dir(), reason="no g++, or no sources"),
]


FLAGS = ["-std=gnu++17", "-w", f"-I{HERE}"]
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined"]
WRONG = {  # program -> (file, what is right in it, what is not, what is to be seen)
    "affinity_refine": [("cuda.cu", "max(x + dx, 0)", "max(x - dx, 0)", "wrong: float64")],
    "cam": [
        ("cuda.cu", "s.width - 1 - x", "x", "wrong: merged, float64"),
        ("cuda_crops.cu", "corner.y + y)", "corner.y + x)", "wrong: crops"),
        ("cuda_loss.cu", "thread += kAdders", "thread += 2 * kAdders", "wrong: loss"),
    ],
    "topk_pool": [("cuda_select.h", "patch < other_patch", "patch > other_patch", "wrong: float32, indices")],
}


def compiled(sources, csrc, folder, options=SANITIZED):
    """The objects of these sources, two compilers at a time."""
    folder.mkdir()
    objects = [str(folder / f"{source.stem}-{source.suffix[1:]}.o") for source in sources]

    def compile_one(source, to):
        subprocess.run(["g++", *FLAGS, *options, f"-I{csrc}", "-x", "c++", "-c", str(source), "-o", to], check=True)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(compile_one, sources, objects))
    return objects


def run(objects, program):
    """The program that these objects make."""
    subprocess.run(["g++", "-fsanitize=address,undefined", *objects, "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True)


@pytest.mark.parametrize("program", WRONG)
def test_cuda_kernels_are_right_and_wrong_ones_are_seen(program, tmp_path):
    """One test, so that what both programs share is compiled once.

    CPU kernels, which the others are compared with, have sanitizers of their own (tests/sanitized.py), and would take
    minutes to compile with them.
    """
    shared = compiled([HERE / f"{program}.cpp"], CSRC, tmp_path / "program")
    shared += compiled(sorted((CSRC / program).glob("*.cpp")), CSRC, tmp_path / "cpu kernels", ["-O0"])
    kernels = compiled(sorted((CSRC / program).glob("*.cu")), CSRC, tmp_path / "kernels")
    result = run([*shared, *kernels], tmp_path / "right")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "0 failures\n"

    csrc = shutil.copytree(CSRC, tmp_path / "csrc")
    for name, right, wrong, _ in WRONG[program]:
        kernel = csrc / program / name
        assert right in kernel.read_text()
        kernel.write_text(kernel.read_text().replace(right, wrong))
    kernels = compiled(sorted((csrc / program).glob("*.cu")), csrc, tmp_path / "wrong kernels")
    result = run([*shared, *kernels], tmp_path / "wrong")
    assert result.returncode == 1
    for *_, seen in WRONG[program]:
        assert seen in result.stdout
