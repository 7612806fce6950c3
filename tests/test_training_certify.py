"""The certificate: passes what rounds differently, fails what is wrong by 0.1 %."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')
pytest.importorskip("timm", reason='needs pip install "toco-kernels[train]"')

from toco_kernels.training import certify, recipes
from toco_kernels.training.certify import Certificate
from toco_kernels.training.recipes import toco
from toco_kernels.training.trainer import Job, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def small_toco(run):
    """All losses, on images of 64 pixels."""
    settings = toco.Recipe.preset("shapes", batch_size=2)
    settings["backbone_options"] = settings["backbone_options"] | {"embed_dim": 32, "depth": 3, "num_heads": 2}
    settings["augmentation"] = settings["augmentation"] | {"size": 64}
    settings["config"] = settings["config"] | {"local_crops": 2, "local_size": 24, "projection": (32, 16, 16)}
    return Job(run, "toco", settings, device="cpu")


def certified(run):
    return certify.certify(small_toco(run), steps=4, seeds=(0, 1), show_progress=False)


def test_toco_trains_as_published(tmp_path):
    certificate = certified(tmp_path)
    assert certificate.first == 20, "where all losses are trained"
    assert set(certificate.ratios) == {"loss", "cls", "cls_aux", "ptc", "ctc", "seg", "reg", "weights"}
    assert certificate.passed, certificate.ratios
    assert all(curve.max() > 0 for curve in certificate.nudged.values())
    assert certificate.nudged["weights"].max() < 0.1, "the runs are comparable"

    certificate.write(tmp_path)
    content = json.loads((tmp_path / "certify.json").read_text())
    assert content["passed"] is True
    assert content["seeds"] == [0, 1]
    np.testing.assert_array_equal(content["ours"]["ptc"], certificate.ours["ptc"])
    lines = ElementTree.parse(tmp_path / "certify.svg").getroot().iter("{http://www.w3.org/2000/svg}polyline")
    assert len([*lines]) == 8 * 2 * 2


@pytest.mark.parametrize("name", ["cls", "ptc", "reg"])
def test_a_loss_that_is_wrong_by_a_thousandth_fails(name, tmp_path, monkeypatch):
    right = toco.Recipe.step

    def wrong(self, module, batch, step):
        output = right(self, module, batch, step)
        weight = self.config().stage(step).weight(name)
        losses = output.losses | {name: 1.001 * output.losses[name]}
        return output._replace(loss=output.loss + 0.001 * weight * output.losses[name], losses=losses)

    monkeypatch.setattr(toco.Recipe, "step", wrong)
    certificate = certify.certify(small_toco(tmp_path), steps=3, seeds=(0,), show_progress=False)
    assert not certificate.passed
    assert certificate.ratios[name] > 20


def test_a_gradient_that_is_wrong_by_a_thousandth_fails(tmp_path, monkeypatch):
    """The losses are right at first, and the weights tell."""
    right = toco.Recipe.step

    def wrong(self, module, batch, step):
        output = right(self, module, batch, step)
        extra = 0.001 * output.losses["cls"]
        return output._replace(loss=output.loss + extra - extra.detach())

    monkeypatch.setattr(toco.Recipe, "step", wrong)
    certificate = certify.certify(small_toco(tmp_path), steps=4, seeds=(0, 1), show_progress=False)
    assert certificate.ratios["weights"] > certify.LIMIT


def test_other_methods_run_their_references(tmp_path):
    tiny = str(Path(__file__).with_name("tiny_method.py"))
    job = Job(tmp_path, tiny, recipes.find(tiny).preset("shapes"), device="cpu")
    certificate = certify.certify(job, steps=3, seeds=(0,), show_progress=False)
    assert certificate.ours["weights"].max() == 0, "it trains with no operator of this package"
    assert certificate.nudged["weights"].max() > 0
    assert certificate.passed


def test_a_nudge_is_one_unit_in_the_last_place():
    module = torch.nn.Linear(50, 40)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    certify.nudge_(module, seed=0)
    for old, new in zip(before, module.parameters(), strict=True):
        up, down = (torch.nextafter(old, torch.full_like(old, bound)) for bound in (torch.inf, -torch.inf))
        assert ((new == up) | (new == down)).all()
        assert 0.2 < (new == up).float().mean() < 0.8
    assert 0 < certify.distance(module, torch.nn.Linear(50, 40)) < 3
    assert certify.distance(module, module) == 0


@pytest.mark.parametrize(
    ("ours", "ratio", "passed"),
    [
        ([[1e-6, 1e-4]], 1, True),
        ([[2e-6, 2e-4]], 2, True),
        ([[3e-6, 3e-4]], 3, False),
        ([[8e-6, 1e-4]], 8**0.5, False),  # early steps weigh as much as late ones
        ([[0, 0]], 2**-22 / 1e-5, True),
        ([[np.nan, 1e-4]], np.inf, False),
    ],
)
def test_the_verdict(ours, ratio, passed):
    certificate = Certificate(0, 2, (0,), {"loss": np.array(ours)}, {"loss": np.array([[1e-6, 1e-4]])})
    assert certificate.ratios["loss"] == pytest.approx(ratio, rel=1e-6)
    assert certificate.passed is passed
    assert ("FAILED" in certify.plot(certificate)) is not passed


def test_rounding_that_nudges_nothing_is_forgiven():
    """Two roundings apart where the nudged run is none."""
    certificate = Certificate(0, 1, (0,), {"loss": np.array([[2.0**-22]])}, {"loss": np.array([[0.0]])})
    assert certificate.passed


def test_a_published_training_that_is_no_number_certifies_nothing():
    certificate = Certificate(0, 1, (0,), {"loss": np.array([[0.0]])}, {"loss": np.array([[np.nan]])})
    with pytest.raises(ArithmeticError, match="there is nothing to compare with"):
        _ = certificate.passed


def test_copies_share_nothing(tmp_path):
    from toco_kernels.training.processes import Processes

    trainer = Trainer(small_toco(tmp_path), Processes.join("cpu"))
    twin = certify._copy(trainer)
    certify.nudge_(twin.module, 0)
    assert certify.distance(twin.module, trainer.module) > 0
    owned = {id(p) for group in twin.optimizer.param_groups for p in group["params"]}
    assert owned <= {id(p) for p in twin.module.parameters()}
    assert owned.isdisjoint(id(p) for p in trainer.module.parameters())
