"""docs/support.md claims what the files say, and nothing more."""

import copy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import support


@pytest.fixture(scope="module")
def known():
    return support.facts()


def line(page, start):
    (found,) = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_page_is_as_written(known):
    assert support.PAGE.read_text() == support.page(known), "run `python docs/support.py`"


def test_facts_are_found(known):
    assert (known["python"], known["torch"]) == ("3.10", "2.11")
    assert "80-real" in known["architectures"]
    assert known["dtypes"] == ["float64", "float32", "bfloat16", "float16"]


def test_only_what_was_recorded_is_tested(known):
    known = {**known, "runs": [{"os": "Linux x86_64", "python": "3.12", "torch": "2.11", "cuda": None, "by": "CI"}]}
    page = support.page(known)
    assert line(page, "Linux x86_64") == ["Linux x86_64", "built", "built", "CI-tested", "built", "built"]
    assert line(page, "macOS")[1].startswith("never run")
    assert line(page, "2.11") == ["2.11", "none", "CI-tested, on the CPU"]
    assert "the oldest" not in page


def test_only_what_was_measured_has_run_on_a_gpu(known):
    known = copy.deepcopy(known)
    known["GPU runs"] = []
    assert "built, never run" in line(support.page(known), "9.0")
    machine = {"gpu": "Abacus H", "capability": [9, 0], "torch": "2.14.1+cu130", "cuda": "13.0"}
    known["GPU runs"] = [{"machine": machine, "rows": [{"dtype": "float32"}]}]
    page = support.page(known)
    assert line(page, "9.0")[3:5] == ["run on a GPU", "built, never run"], "float32, bfloat16"
    assert line(page, "8.0")[3] == "built, never run"
    assert "| 2.14 | 13.0 | run on a GPU: Abacus H |" in page


def test_check_fails_when_the_page_is_out_of_date(tmp_path, monkeypatch):
    monkeypatch.setattr(support, "PAGE", tmp_path / "support.md")
    monkeypatch.setattr(sys, "argv", ["support.py", "--check"])
    assert "out of date" in support.main()
    monkeypatch.setattr(sys, "argv", ["support.py"])
    assert support.main() is None
    monkeypatch.setattr(sys, "argv", ["support.py", "--check"])
    assert support.main() is None


def test_a_run_is_recorded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(support, "RUNS", tmp_path / "support.json")
    support.RUNS.write_text("[]")
    for _ in range(2):
        support.record("CI")
    (run,) = support.facts()["runs"]
    assert run["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
