"""The benchmark harness gives no number for a wrong answer, loses no row, and measures what it says."""

import json
import math
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import harness
import rows
import tables
from harness import TRAINING, Bench, Case
from rows import KEY, Results

from toco_kernels.common import measure

ROOT = Path(__file__).parents[1]
API = {
    *("op", "case", "shape", "dtype", "precision", "direction", "provider", "timer", "cache", "threads"),
    *("ms", "ms_p20", "ms_p80", "peak_mb", "bytes", "flop", "limit_share", "max_error", "sources"),
}
MACHINE = {"name": "abacus", "cpu": "Abacus", "isa": "beads", "cores": 1, "gpu": None, "torch": "2.11.0"}


class OneRound:
    """pytest-benchmark's fixture, as far as the harness uses it."""

    disabled = False

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, target, *, rounds):
        target()


def square(x):
    return (x * x).sum(1)


BENCH = Bench(
    room="class_contrast",
    op="square",
    providers={"toco_kernels": square, "published": square, "rewrite": square},
    inputs=lambda generator, rows: {"x": torch.randn(rows, 3, generator=generator)},
    differentiable=("x",),
    flop=lambda direction, x: 2 * x.numel(),
    blas=lambda direction, x: x @ x.mT,
    tiny={"rows": 1},
    cases=[Case("five", {"rows": 5}, decisive=True), Case("half", {"rows": 6}, torch.bfloat16)],
)
FIVE = BENCH.cases[0]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "peak_mb", lambda *_: 1.5)
    return Results(tmp_path, MACHINE)


def compare(bench, results, case=FIVE, direction=TRAINING):
    harness.compare(bench, case, direction, benchmark=OneRound(), results=results)


def saved(results):
    return json.loads(results.file.read_text())["rows"]


def with_rewrite(rewrite):
    return Bench(**{**vars(BENCH), "providers": BENCH.providers | {"rewrite": rewrite}})


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return square(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2.001 * x * grad[:, None]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: square(x) * 1.001,
        lambda x: square(x) + math.nan,
        lambda x: square(x)[None],
        lambda x: square(x.half()).float(),
        lambda x: WrongGradient.apply(x),  # torch 2.11's takes no keywords
    ],
    ids=["value", "NaN", "shape", "half precision", "gradient alone"],
)
def test_a_wrong_provider_gets_no_row(wrong, results):
    with pytest.raises(pytest.fail.Exception, match="wrong, so not measured: rewrite"):
        compare(with_rewrite(wrong), results)
    assert {row["provider"] for row in saved(results)} >= {"toco_kernels", "published", "copy", "blas"}
    assert "rewrite" not in {row["provider"] for row in saved(results)}


def test_a_rival_that_fails_in_less_precision_is_reported_and_no_failure_of_ours(results, monkeypatch):
    plain = harness.variants(BENCH, torch.float32, compiled=False)
    for broken, outcome in ("rewrite+amp", pytest.xfail), ("toco_kernels+amp", pytest.fail):
        amp = harness.Provider(lambda x: square(x) * 2, nullcontext, "amp")
        monkeypatch.setattr(harness, "variants", lambda *_, found=plain | {broken: amp}, **__: found)
        with pytest.raises(outcome.Exception, match=rf"wrong, so not measured: {re.escape(broken)} \(error 1\)"):
            compare(BENCH, results)
        assert broken not in {row["provider"] for row in saved(results)}


def test_float32_may_lose_what_published_loses_and_no_more():
    assert harness.tolerance("float32", published=1e-7) == 1e-4
    assert harness.tolerance("float32", published=7e-4) == 14e-4
    assert harness.tolerance("float32", published=math.inf) == harness.tolerance("tf32", published=0) == 2e-2


def test_rows_say_what_the_api_promises(results):
    for case in BENCH.cases:
        compare(BENCH, results, case)
    assert all(set(row) == API for row in saved(results))
    wall = {(row["case"], row["provider"]): row for row in saved(results) if row["timer"] == "wall"}
    five, half, copy = wall["five", "rewrite"], wall["half", "rewrite"], wall["five", "copy"]
    assert (five["shape"], five["dtype"], five["direction"]) == ("x 5x3", "float32", "forward+backward")
    assert five["bytes"] == 4 * (15 + 5 + 15), "the input, the output and the gradient"
    assert half["bytes"] == 2 * (18 + 6 + 18)
    assert five["flop"] == 30
    assert 0 < five["ms_p20"] <= five["ms"] <= five["ms_p80"]
    assert 0 < five["max_error"] < 1e-6 < half["max_error"] < 2e-2
    assert five["limit_share"] == pytest.approx(max(copy["ms"], wall["five", "blas"]["ms"]) / five["ms"], rel=0.01)
    assert (five["peak_mb"], copy["peak_mb"], copy["max_error"], copy["limit_share"]) == (1.5, None, None, None)


@pytest.mark.gpu
def test_on_a_gpu_only_what_does_not_wait_for_the_host_is_captured(results):
    compare(with_rewrite(lambda x: square(x) * (1 if x.sum().item() > -math.inf else 0)), results)
    timers = {}
    for row in saved(results):
        timers.setdefault(row["provider"], set()).add((row["timer"], row["cache"]))
    assert timers["rewrite"] == timers["rewrite+amp"] == {("wall", "warm")}
    assert timers["toco_kernels"] == timers["copy"] == {("wall", "warm"), ("graph", "warm"), ("graph", "cold")}


def row(**changes):
    return {**dict.fromkeys(KEY, "same"), "ms": 1.0} | changes


def test_a_row_replaces_that_of_its_key_and_no_other(tmp_path):
    Results(tmp_path, MACHINE).put([row(provider="a"), row(provider="b"), row(provider="c")])
    Results(tmp_path, MACHINE).put([row(provider="b", ms=2.0), row(provider="d")])
    found = saved(Results(tmp_path, MACHINE))
    assert [(row["provider"], row["ms"]) for row in found] == [("a", 1), ("b", 2), ("c", 1), ("d", 1)]
    for name in KEY:
        Results(tmp_path, MACHINE).put([row(provider="a") | {name: "other"}])
    assert len(saved(Results(tmp_path, MACHINE))) == 4 + len(KEY)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    results = Results(tmp_path, MACHINE)
    results.put([row()])
    before = results.file.read_text()

    def power_cut(*_):
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", power_cut)
        with pytest.raises(OSError, match="power cut"):
            results.put([row(provider="late")])
    assert results.file.read_text() == before
    results.put([row(provider="late")])
    assert len(saved(results)) == 2


def test_sources_are_the_rooms_own(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    hashes = [rows.sources("room")]
    for name in "csrc/room/cpu.cpp", "python/torch_cpu/room.cpp", "python/room.h", "toco_kernels/room/op.py":
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
        hashes.append(rows.sources("room"))
    (tmp_path / name).write_text("2")
    hashes.append(rows.sources("room"))
    assert len(set(hashes)) == 6
    (tmp_path / "csrc/other").mkdir()
    (tmp_path / "csrc/other/cpu.cpp").write_text("1")
    assert rows.sources("room") == hashes[-1]


def test_the_commit_says_dirty(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert rows.commit() == "unknown"

    def git(*args):
        subprocess.run(["git", "-c", "user.name=me", "-c", "user.email=me@here", *args], cwd=tmp_path, check=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "empty")
    clean = rows.commit()
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/abacus.json").write_text("{}")
    assert rows.commit() == clean, "results alone do not change what was measured"
    (tmp_path / "new.py").write_text("")
    assert rows.commit() == clean + "+dirty"


def measured(provider, ms, **changes):
    return {
        **row(op="class_token_contrast", provider=provider, dtype="float32", precision="float32"),
        **{"timer": "wall", "cache": "warm", "threads": 2, "ms": ms, "ms_p20": ms * 0.9, "ms_p80": ms * 1.1},
        **{"peak_mb": ms, "max_error": ms * 1e-7, "sources": rows.sources("class_contrast")},
    } | changes


def lines(*found):
    table = tables.render(MACHINE, "abc", [*found])
    return [line for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]


def test_tables_show_ratios_and_every_loss():
    (line,) = lines(measured("toco_kernels", 2.0), measured("published", 50.0), measured("copy", 0.1))
    assert "| 2 (1.8–2.2) | 50 (25x) | 2 / 50 | 2e-07 / 5e-06 |" in line
    won, lost = lines(
        *(measured("toco_kernels", 2.0), measured("rewrite", 2.1)),
        *(measured("toco_kernels", 2.0, case="lost"), measured("rewrite", 1.0, case="lost")),
    )
    assert "slower" not in won
    assert "| 2 (1.8–2.2) **slower** | 1 (0.5x) |" in lost
    plain, tf32 = lines(
        *(measured("toco_kernels", 2.0), measured("rewrite", 4.0)),
        *(measured("toco_kernels+tf32", 1.0, precision="tf32"), measured("rewrite+tf32", 4.0, precision="tf32")),
    )
    assert "4 (2x)" in plain
    assert "4 (4x)" in tf32, "compared in like precision"


def test_tables_mark_rows_older_than_the_code():
    fresh, stale = lines(measured("toco_kernels", 1.0), measured("toco_kernels", 1.0, case="old", sources="0"))
    assert tables.STALE not in fresh
    assert tables.STALE in stale


def test_tables_show_losses_by_themselves_and_steps_first():
    won = [measured("toco_kernels", 2.0), measured("rewrite", 2.1), measured("published", 9.0)]
    lost = [
        measured(name, ms, case="lost") for name, ms in (("toco_kernels", 2.0), ("rewrite", 1.5), ("published", 1.0))
    ]
    machine = {"machine": MACHINE, "commit": "abc", "rows": [*won, *lost]}
    text = tables.fill("<!-- benchmarks: losses -->\n<!-- /benchmarks -->", [machine])
    (line,) = [line for line in text.splitlines() if "class_token_contrast" in line]
    assert "| `class_token_contrast` | lost: same, float32 | same | wall, 2 threads" in line
    assert line.endswith("| published | 2 / 1 |")
    machine["rows"] = won
    assert "No rival is faster" in tables.fill("<!-- benchmarks: losses -->\n<!-- /benchmarks -->", [machine])

    steps = [measured(name, ms, op="toco_step") for name, ms in (("toco_kernels", 10.0), ("published", 20.0))]
    machine["rows"] = [*won, *steps]
    text = tables.fill("<!-- benchmarks: steps -->\n<!-- /benchmarks -->", [machine])
    assert "**`toco_step`**" in text
    assert "class_token_contrast" not in text
    both = tables.render(MACHINE, "abc", machine["rows"])
    assert both.index("toco_step") < both.index("class_token_contrast")


def test_floors_are_of_bytes_and_of_operations_with_the_gradient():
    rows = [
        measured("toco_kernels", 2.0, direction="forward", bytes=1, flop=1),
        measured("toco_kernels", 2.0, direction="forward+backward", bytes=8_600_000, flop=780_000_000),
        measured("toco_kernels", 2.0, direction="forward+backward", case="another", bytes=1, flop=1),
    ]
    machine = {"machine": MACHINE, "commit": "abc", "rows": rows}
    text = tables.fill("<!-- benchmarks: floors -->\n<!-- /benchmarks -->", [machine])
    (line,) = [line for line in text.splitlines() if "class_token_contrast" in line]
    assert line.endswith("forward+backward | 8.6 | 0.78 | 2 | 13 | 2 |")


def test_check_detects_a_readme_that_is_out_of_date(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    markers = [f"<!-- benchmarks: {name} -->\nold\n<!-- /benchmarks -->\n" for name in ("class_contrast", "unknown")]
    readme.write_text("before\n" + "between\n".join(markers) + "after\n")
    results = Results(tmp_path, MACHINE)
    results.put([measured("toco_kernels", 2.0)])

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["tables.py", "--readme", str(readme), "--results", str(tmp_path), *options])
        return tables.main()

    assert "out of date" in run("--check")
    assert "old" in readme.read_text(), "--check writes nothing"
    assert run() is None
    text = readme.read_text()
    assert [text.count(word) for word in ("before", "between", "after", "old", "| 2 (1.8–2.2) |")] == [1, 1, 1, 0, 1]
    assert "Not measured yet." in text
    assert run("--check") is None
    results.put([measured("toco_kernels", 3.0)])
    assert "out of date" in run("--check")


def exp(x, n):
    return x.expand(n).exp()


MEMORY = Bench(
    room="class_contrast",
    op="exp",
    providers={"toco_kernels": exp},
    inputs=lambda generator, n: {"x": torch.ones(1), "n": n},
    differentiable=("x",),
    flop=lambda direction, x, n: n,
    tiny={"n": 1},
    cases=[Case("25 MB forward, 25 MB backward", {"n": 6_250_000})],
)


def test_peak_memory_is_what_a_step_allocates_and_nothing_else(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    output = torch.empty(6_250_000)
    peak = harness._peak_mb(MEMORY, MEMORY.cases[0], TRAINING, "toco_kernels", output)
    assert peak == pytest.approx(50, rel=0.2)


def test_rivals_are_timed_alike():
    timings = measure.time_calls({"2 ms": lambda: time.sleep(2e-3), "4 ms": lambda: time.sleep(4e-3)}, rounds=30)
    assert timings["4 ms"].ms / timings["2 ms"].ms == pytest.approx(2, rel=0.2)


def test_the_command_measures_the_decisive_case(tmp_path):
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "benchmarks", "-m", "decisive", "-k", "class_contrast and not backward"]
    command += ["--results", str(tmp_path / "results"), f"--benchmark-json={tmp_path / 'report.json'}"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**`class_token_contrast`**" in done.stdout
    (benchmark,) = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    (file,) = (tmp_path / "results").iterdir()
    found = json.loads(file.read_text())
    assert found["machine"]["name"] == file.stem
    wall = {row["provider"]: row["ms"] for row in found["rows"] if row["timer"] == "wall"}
    assert {"toco_kernels", "published", "rewrite", "copy"} <= wall.keys()
    assert wall == {name: pytest.approx(times["ms"], rel=1e-3) for name, times in benchmark["extra_info"].items()}
