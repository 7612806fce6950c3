"""`python -m toco_kernels bench` sums up rows, runs what is asked for, and is found in a wheel."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from toco_kernels.cli import bench
from toco_kernels.common import benchmarks

MACHINE = {"gpu": None, "cpu": "Abacus", "cores": 1, "torch": "2.11.0"}


def row(provider, ms, *, op="topk_pool", precision="float32", peak_mb=None, **others):
    fixed = {"case": "VOC", "direction": "forward", "timer": "wall"}
    return {"op": op, "provider": provider, "ms": ms, "precision": precision, "peak_mb": peak_mb} | fixed | others


def test_the_table_has_steps_first_and_says_where_a_rival_is_faster():
    rows = [
        row("toco_kernels", 2.0, peak_mb=10.0),
        row("published", 8.0, peak_mb=40.0),
        row("rewrite", 1.0, peak_mb=20.0),
        row("copy", 0.1),
        row("published", 3.0, timer="graph"),
        row("toco_kernels", 5.0, op="toco_step", peak_mb=0.0),
        row("published", 10.0, op="toco_step"),
        row("published", 10.0, op="dense_crf"),
    ]
    found = {"machine": MACHINE, "rows": rows, "failed": {"dense_crf": "wrong"}, "left_out": {}}
    place, _, step, operator, failed = bench.as_text(found).splitlines()
    assert place == "Abacus, 1 cores, torch 2.11.0: how many times ours the others take"
    assert step.split() == ["toco_step", "VOC", "forward", "5", "2.00x"]
    assert operator.split()[:7] == ["topk_pool", "VOC", "forward", "2", "4.00x", "0.50x", "4.0x"]
    assert operator.endswith("SLOWER than a rival")
    assert failed == "not measured: dense_crf: wrong"


def test_a_rival_in_less_precision_is_compared_with_ours_in_the_same():
    rows = [row("toco_kernels", 2.0), row("published", 4.0)]
    rows += [row("toco_kernels+tf32", 1.0, precision="tf32"), row("published+tf32", 4.0, precision="tf32")]
    assert [entry["times"] for entry in bench.gains(rows)] == [{"published": 2.0}, {"published": 4.0}]


@pytest.mark.parametrize(
    ("chosen", "file", "name", "wanted"),
    [
        ("topk_pool", "bench_topk_pool.py", "test_linear_topk_pool", True),  # the room
        ("dense_crf", "bench_dense_energy.py", "test_dense_crf", True),
        ("dense_crf", "bench_dense_energy.py", "test_bilateral_filter", False),
        ("patch_contrast", "bench_patch_contrastive_error.py", "test_patch_contrastive_error", True),
        ("toco_step", "bench_step.py", "test_toco_step", True),
        ("cam", "bench_class_contrast.py", "test_class_token_contrast", False),
    ],
)
def test_operators_and_rooms_are_chosen_by_name(chosen, file, name, wanted):
    item = SimpleNamespace(path=Path(file), originalname=name)
    assert bench.Progress([chosen])._is_wanted(item) == wanted


def test_the_plot(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    entries = bench.gains([row("toco_kernels", 2.0), row("published", 4.0), row("rewrite", 1.0)])
    bench.draw(entries, pyplot, tmp_path / "gains.png")
    assert (tmp_path / "gains.png").stat().st_size > 5000


def test_the_command_refuses_what_nobody_measures():
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "toco_kernels", "bench", "no_such_operator"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=benchmarks.PACKAGE.parent)
    assert done.returncode == 1
    assert "error: OP must be operators or rooms with a benchmark, got no_such_operator" in done.stderr


def test_the_benchmarks_are_those_of_the_wheel_or_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "PACKAGE", tmp_path / "toco_kernels")
    with pytest.raises(FileNotFoundError, match="reinstall toco_kernels"):
        benchmarks.folder()
    for place in (tmp_path / "benchmarks", tmp_path / "toco_kernels" / "_benchmarks"):
        place.mkdir(parents=True)
        (place / "harness.py").touch()
        assert benchmarks.folder() == place
