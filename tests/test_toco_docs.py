"""What docs/toco.md tells people to write."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toco_inputs import VIT, sharper, tiny_batch, tiny_toco

from toco_kernels import methods
from toco_kernels.methods import TINY, Quirks

pytestmark = pytest.mark.usefixtures("one_thread")

DOCS = Path(__file__).parents[1] / "docs"
TUTORIAL = (DOCS / "toco.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)


def test_ten_lines_of_the_tutorial_run(monkeypatch):
    """On a small backbone and a CPU, with weights that nobody downloads."""
    (code,) = (code for code in CODE if "loader" in code)
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
    assert code.count(".cuda()") == 2  # of the model and of the batch
    exec(code.replace(".cuda()", ""), names)
    assert names["step"] == 2
    assert names["output"].loss.isfinite()
    first = small("", config, True)
    assert not torch.equal(names["model"].classifier.weight, first.classifier.weight)


def test_recipe_of_cams_is_what_evaluate_does():
    """On a photograph that is not square."""
    pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')
    from toco_kernels.training.predictor import Predictor
    from toco_kernels.training.recipes.toco import Recipe
    from toco_kernels.training.refine import Settings, pseudo_label
    from toco_kernels.training.views import as_tensor, normalised

    (code,) = (code for code in CODE if "squashed = " in code)
    assert len(code.strip().split("\n")) == 6
    size, labels = (60, 90), np.array([1, 0, 1, 0, 0])
    photograph = (tiny_batch(1, size)["images"][0].permute(1, 2, 0).clamp(-2, 2) * 60 + 128).byte().numpy()
    model = sharper(tiny_toco(replace(TINY, cam_scales=(0.25,))))
    recipe = Recipe(Recipe.preset("shapes", cam_scales=[0.25]), ("background", *"abcde"))
    cams = Predictor(recipe, model, torch.device("cpu"), size=448).cams(photograph, labels)["cam"]
    expected = pseudo_label(photograph, cams, labels, Settings("none", TINY.background, TINY.background))
    assert set(np.unique(expected)) == {0, 1, 3}

    image = normalised(as_tensor(photograph)[None], TINY.mean, TINY.std)
    names = {"model": model, "VOC": TINY, "torch": torch, "image": image, "mask_size": size}
    names["image_labels"] = torch.from_numpy(labels)[None]
    exec(code, names)
    np.testing.assert_allclose(names["cams"][0].numpy(), cams, atol=1e-4)
    assert (names["label"][0].numpy() == expected).mean() > 0.999
    assert (model.cams(image, names["image_labels"]) - names["cams"]).abs().max() > 0.01, "at its own size, another one"


def test_every_quirk_and_name_is_documented():
    section = TUTORIAL.split("## What the published code does")[1]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(Quirks.__dataclass_fields__)
    assert "| `Optimisation(restart_after_warmup=…)` |" in section
    for name in ("shard_", "load_authors_checkpoint", "ToCoCriterion", "parameter_groups", "learning_rate_factor"):
        assert name in methods.__all__
        assert name in TUTORIAL


def test_curves_lie_on_each_other():
    spec = importlib.util.spec_from_file_location("toco_curves", DOCS / "toco_curves.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.curves(2)
    assert found["toco_kernels"] == pytest.approx(found["published"], rel=1e-4)
    assert len(set(found["published"])) == 2
    picture = script.drawn(found)
    assert picture.count("<polyline") == 2
    assert picture.startswith("<svg")
