"""The study on the shapes: what its variants are, and that its table is that of its numbers."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')
pytest.importorskip("timm", reason='needs pip install "toco-kernels[train]"')

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("shapes_study", ROOT / "docs" / "shapes_study.py")
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def test_variants_differ_in_the_contrast_alone():
    assert study.settings("toco", "with") == study.find("toco").preset("shapes")
    whole, without = (json.loads(json.dumps(study.settings("toco", variant))) for variant in ("with", "without"))
    *_, last = without["config"]["stages"]
    assert set(last["weights"]) == {"cls", "cls_aux", "seg", "reg"}
    for stage, other in zip(whole["config"]["stages"], without["config"]["stages"], strict=True):
        other["weights"] = stage["weights"]
    assert without == whole


@pytest.mark.parametrize("method", [method for method in study.VARIANTS if study.result_file(method).exists()])
def test_its_numbers_are_of_the_whole_test_split(method):
    rows = json.loads(study.result_file(method).read_text())
    assert {(row["variant"], row["seed"]) for row in rows} <= {
        (v, s) for v in study.VARIANTS[method] for s in study.SEEDS
    }
    assert {row["steps"] for row in rows} == {study.settings(method, "with")["steps"]}
    for row in rows:
        assert row["images"] == 512
        if method == "toco":
            assert row["pseudo_label_miou"] >= 0.55
            assert row["pseudo_label_miou"] > row["cam_miou"]


def test_the_readme_has_its_table():
    text = (ROOT / "README.md").read_text()
    assert text.split(study.START)[1].split(study.END)[0] == study.table()


def test_the_table_and_what_was_measured_train_nothing(tmp_path, monkeypatch):
    """Although no run is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "train", lambda *_, **__: pytest.fail("it trained"))
    (tmp_path / "README.md").write_text(f"before\n{study.START}old{study.END}\nafter\n")
    monkeypatch.setattr(study, "README", tmp_path / "README.md")
    monkeypatch.setattr("sys.argv", ["shapes_study.py", "--table"])
    study.main()
    assert (tmp_path / "README.md").read_text() == f"before\n{study.START}{study.table()}{study.END}\nafter\n"

    measured = study.result_file("toco").read_text()
    monkeypatch.setattr(study, "result_file", lambda method: tmp_path / f"{method}.json")
    (tmp_path / "toco.json").write_text(measured)
    study.study("toco", tmp_path / "runs", None)
    assert (tmp_path / "toco.json").read_text() == measured


def test_only_what_is_missing_is_trained(tmp_path, monkeypatch):
    rows = json.loads(study.result_file("toco").read_text())
    trained = []

    def train(job, resume):
        trained.append((job.run.name, job.seed))
        numbers = {"steps": 60, "images": 512, **dict.fromkeys(study.NUMBERS, 0.5)}
        job.run.mkdir(parents=True)
        (job.run / "metrics.json").write_text(json.dumps(numbers))

    monkeypatch.setattr(study, "train", train)
    monkeypatch.setattr(study, "result_file", lambda method: tmp_path / f"{method}.json")
    kept = [row for row in rows if (row["variant"], row["seed"]) != ("without", 1)]
    (tmp_path / "toco.json").write_text(json.dumps(kept))
    study.study("toco", tmp_path / "runs", None)
    assert trained == [("toco-without-1", 1)]
    written = json.loads((tmp_path / "toco.json").read_text())
    assert [row for row in written if row in kept] == kept
    assert len(written) == len(rows)
