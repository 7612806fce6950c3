"""What docs/ppc.md tells people to write."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ppc_inputs import RESNET, tiny_batch
from torch import nn

from toco_kernels import methods
from toco_kernels.methods import PPC, PPC_SEAM, PPC_TINY
from toco_kernels.training import recipes

pytestmark = pytest.mark.usefixtures("one_thread")

TUTORIAL = (Path(__file__).parents[1] / "docs" / "ppc.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)


def test_ten_lines_of_the_tutorial_run(monkeypatch):
    """On a small backbone and a CPU, with weights that nobody downloads."""

    def small(name, config, pretrained):
        assert pretrained
        assert name == "resnet50.tv_in1k"
        return PPC("resnet10t", config=config, backbone_options=RESNET)

    monkeypatch.setattr(methods, "PPC_SEAM", PPC_TINY)
    monkeypatch.setattr(methods, "PPC", small)
    (code,) = (code for code in CODE if "loader" in code)
    names = {"loader": [(b["images"], b["image_labels"]) for b in map(tiny_batch, (2, 2))]}
    exec(code.replace(".cuda()", ""), names)
    assert names["step"] == 1
    assert names["output"].loss.isfinite()
    assert names["optimizer"].param_groups[0]["momentum"] == 0


def test_contrast_for_a_network_of_ones_own():
    (code,) = (code for code in CODE if "your_loss" in code)
    base, classifier, projector = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 21, 1), nn.Conv2d(8, 4, 1)
    images = tiny_batch()["images"]
    features = [base(x) for x in (images, images[:, :, ::2, ::2])]
    names = {"your_loss": torch.zeros(()), "image_labels": torch.eye(3, 20)}
    for kind, head in (("cams", classifier), ("features", projector)):
        names |= {prefix + kind: head(x) for prefix, x in zip(("", "small_"), features, strict=True)}
    exec(code, names)
    names["loss"].backward()
    assert base.weight.grad.norm() > 0


def test_the_table_has_the_published_values():
    eps = replace(methods.PPC_EPS)
    rows = dict(re.findall(r"^\| ([a-z' ]+[^|]*?) \| ([^|]+ \| [^|]+) \|$", TUTORIAL.split("## Settings")[1], re.M))
    found = {name: [cell.replace(" ", "") for cell in cells.split("|")] for name, cells in rows.items()}
    assert [float(x) for x in found["background's score for labels"]] == [
        PPC_SEAM.background_score,
        eps.background_score,
    ]
    assert [float(x) for x in found["threshold of CAMs"]] == [PPC_SEAM.background, eps.background]
    assert [int(x) for x in found["steps of 8 images"]] == [PPC_SEAM.optimisation.steps, eps.optimisation.steps]


def test_presets_are_documented():
    (sentence,) = re.findall(r"The presets are ([^.]*?), which trains", TUTORIAL, re.DOTALL)
    assert re.findall(r"`([^`]+)`", sentence) == [*recipes.find("ppc").presets]
    named = re.findall(r"--preset (\S+)", TUTORIAL)
    assert named
    assert {*named} <= {*recipes.find("ppc").presets}
