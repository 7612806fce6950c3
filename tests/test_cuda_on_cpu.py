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


def compile_and_run(program, tmp_path, csrc=CSRC):
    flags = ["-std=gnu++17", "-O1", "-g", "-fsanitize=address,undefined", "-w", f"-I{HERE}", f"-I{csrc}", "-x", "c++"]
    sources = [HERE / f"{program}.cpp", *(csrc / program).glob("*.cpp"), *(csrc / program).glob("*.cu")]
    objects = [str(tmp_path / f"{i}.o") for i in range(len(sources))]

    def compile_one(source, to):
        subprocess.run(["g++", *flags, "-c", str(source), "-o", to], check=True)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(compile_one, sources, objects))
    subprocess.run(["g++", "-fsanitize=address,undefined", *objects, "-o", str(tmp_path / "program")], check=True)
    return subprocess.run([str(tmp_path / "program")], capture_output=True, text=True)


@pytest.mark.parametrize("program", ["affinity_refine", "cam", "topk_pool"])
def test_cuda_kernels(program, tmp_path):
    result = compile_and_run(program, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "0 failures\n"


WRONG = {  # program -> (file, what is right in it, what is not, what is to be seen)
    "affinity_refine": [("cuda.cu", "max(x + dx, 0)", "max(x - dx, 0)", "wrong: float64")],
    "cam": [  # together: to compile is slow
        ("cuda.cu", "s.width - 1 - x", "x", "wrong: merged, float64"),
        ("cuda_crops.cu", "corner.y + y)", "corner.y + x)", "wrong: crops"),
        ("cuda_loss.cu", "thread += kAdders", "thread += 2 * kAdders", "wrong: loss"),
    ],
    "topk_pool": [("cuda_select.h", "patch < other_patch", "patch > other_patch", "wrong: float32, indices")],
}


@pytest.mark.parametrize("program", WRONG)
def test_wrong_kernels_are_seen(program, tmp_path):
    csrc = shutil.copytree(CSRC, tmp_path / "csrc")
    for name, right, wrong, _ in WRONG[program]:
        kernel = csrc / program / name
        assert right in kernel.read_text()
        kernel.write_text(kernel.read_text().replace(right, wrong))
    result = compile_and_run(program, tmp_path, csrc)
    assert result.returncode == 1
    for *_, seen in WRONG[program]:
        assert seen in result.stdout
