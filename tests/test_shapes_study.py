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
