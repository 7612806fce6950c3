"""What docs/toco.md tells people to write."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toco_inputs import VIT, tiny_batch

from toco_kernels import methods
from toco_kernels.methods import TINY, Quirks

pytestmark = pytest.mark.usefixtures("one_thread")

DOCS = Path(__file__).parents[1] / "docs"
TUTORIAL = (DOCS / "toco.md").read_text()


def test_ten_lines_of_the_tutorial_run(monkeypatch):
    """On a small backbone and a CPU, with weights that nobody downloads."""
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL) if "loader" in code)
    lines = [line for line in code.split("\n") if line.strip() and "import" not in line]
    assert len([line for line in lines if line.strip() not in (")", "(")]) <= 11  # of which one is a call's second

    def small(name, config, pretrained):
        assert pretrained
        return methods.toco.ToCo("vit_tiny_patch16_224", config=config, backbone_options=VIT)

    config = replace(TINY, optimisation=replace(TINY.optimisation, warmup_steps=1))
    monkeypatch.setattr(methods, "VOC", config)
    monkeypatch.setattr(methods, "ToCo", small)
    batches = [tiny_batch(seed=seed) for seed in range(3)]
    loader = [
        (b["images"], b["image_labels"], b["boxes"], b["views"]["second_global"], b["views"]["local_source"])
        for b in batches
    ]
    names = {"loader": loader}
    exec(code.replace(".cuda()", ""), names)
    assert names["step"] == 2
    assert names["output"].loss.isfinite()
    first = small("", config, True)
    assert not torch.equal(names["model"].classifier.weight, first.classifier.weight)


def test_every_quirk_and_name_is_documented():
    section = TUTORIAL.split("## What the published code does")[1]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(Quirks.__dataclass_fields__)
    for name in ("shard_", "load_authors_checkpoint", "ToCoCriterion", "parameter_groups", "learning_rate_factor"):
        assert name in methods.__all__
        assert name in TUTORIAL


def test_curves_lie_on_each_other():
    spec = importlib.util.spec_from_file_location("toco_curves", DOCS / "toco_curves.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.curves(4)
    assert found["toco_kernels"] == pytest.approx(found["published"], rel=1e-4)
    assert len(set(found["published"])) == 4
    picture = script.drawn(found)
    assert picture.count("<polyline") == 2
    assert picture.startswith("<svg")
