"""docs/support.md claims what the files say, and nothing more."""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import conftest
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


def test_what_is_tested_by_hand_is_not_ci(known):
    run = {"os": "Linux x86_64", "python": "3.12", "torch": "2.11", "cuda": None, "by": "hand"}
    page = support.page({**known, "runs": [run]})
    assert line(page, "Linux x86_64")[3] == "tested once"
    assert line(page, "2.11")[2] == "tested once, on the CPU"
    both = support.page({**known, "runs": [{**run, "torch": "2.14", "by": "CI"}, run]})
    assert line(both, "Linux x86_64")[3] == "CI-tested"


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


@pytest.fixture
def claims(tmp_path, monkeypatch):
    """No runs of the tests, and no note of one."""
    monkeypatch.setattr(support, "RUNS", tmp_path / "support.json")
    monkeypatch.setattr(support, "NOTE", tmp_path / "build" / "tested.json")
    support.RUNS.write_text("[]")
    return support.RUNS


def test_nothing_is_recorded_or_confirmed_without_tests_that_passed(claims):
    for call in (support.record, support.confirm):
        with pytest.raises(SystemExit, match=r"tested\.json is not there: all tests must have passed here"):
            call("CI")
    assert claims.read_text() == "[]"


def test_what_passed_is_recorded_once(claims):
    support.note()
    for _ in range(2):
        support.record("CI")
    (run,) = support.facts()["runs"]
    assert run["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert support.confirm("CI") is None


@pytest.mark.parametrize("claim", [{"python": "3.9"}, {"torch": "2.99"}])
def test_ci_fails_where_it_is_claimed_to_test_what_it_did_not(claim, claims):
    support.note()
    support.record("CI")
    (run,) = json.loads(claims.read_text())
    claims.write_text(json.dumps([run | claim]))
    assert "must say that CI tests" in support.confirm("CI")
    claims.write_text(json.dumps([run, run | claim]))
    assert "and nothing else" in support.confirm("CI")
    claims.write_text(json.dumps([run, run | claim | {"by": "me"}]))
    assert support.confirm("CI") is None


def session(**options):
    """Of all tests, but for the options."""
    option = SimpleNamespace(**{"keyword": "", "markexpr": "", "deselect": None, "lf": False} | options)
    sources = pytest.Config.ArgsSource
    source = sources.ARGS if options.get("files") else sources.TESTPATHS
    return SimpleNamespace(config=SimpleNamespace(option=option, args_source=source, ArgsSource=sources))


@pytest.mark.parametrize("part", [{"keyword": "one"}, {"markexpr": "not slow"}, {"collectonly": True}, {"files": True}])
def test_the_note_is_of_all_tests_that_passed_and_no_less(part, claims):
    failed, passed = pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.OK
    conftest.pytest_sessionfinish(session(**part), passed)
    conftest.pytest_sessionfinish(session(), failed)
    assert not support.NOTE.exists()
    conftest.pytest_sessionfinish(session(), passed)
    assert support.NOTE.exists()
    conftest.pytest_sessionstart(session(**part))
    assert support.NOTE.exists(), "that of the last whole session stays"
    conftest.pytest_sessionstart(session())
    assert not support.NOTE.exists(), "until the next"
