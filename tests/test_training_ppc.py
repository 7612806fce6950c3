"""PPC on the commands: train, resume, pseudo labels, evaluation, certificate; saliency maps."""

import json
import re

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')
pytest.importorskip("timm", reason='needs pip install "toco-kernels[train]"')

from PIL import Image
from ppc_inputs import SMALL
from ppc_inputs import small_job as job
from test_training_loop import assert_same_weights, losses, quiet
from voc_folder import LABELS, SIZE, make_folder

from toco_kernels.__main__ import main
from toco_kernels.training import certify, files
from toco_kernels.training.files import DataError
from toco_kernels.training.processes import Processes
from toco_kernels.training.recipes.ppc import Recipe
from toco_kernels.training.scaled_view import ScaledCrop, ScaledView
from toco_kernels.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def command(*words):
    return main([str(word) for word in words])


def with_saliency(root):
    (root / "SALImages").mkdir()
    random = np.random.default_rng(1)
    for name in LABELS:
        Image.fromarray(random.integers(0, 256, SIZE, np.uint8)).save(root / "SALImages" / f"{name}.png")
    return root


def test_the_commands(tmp_path, capsys):
    root, run, labels = make_folder(tmp_path / "voc"), tmp_path / "run", tmp_path / "labels"
    changes = [word for text in (*SMALL, "config.contrast_from=2") for word in ("--set", text)]
    arguments = (
        "--method",
        "ppc",
        "--data",
        "folder",
        "--root",
        root,
        "--preset",
        "shapes",
        "--device",
        "cpu",
        *changes,
    )
    assert command("train", "--out", run, "--log-every", 1, *arguments) == 0
    assert [line["cross_cam"] > 0 for line in losses(run)] == [False, False, True, True]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["seg_miou"] is None
    assert command("pseudo-label", "--run", run, "--out", labels, "--device", "cpu") == 0
    assert "3 labels written" in capsys.readouterr().out
    files.read_mask(labels / "a.png", 3, SIZE)
    assert command("evaluate", "--protocol", "run", "--run", run, "--device", "cpu") == 0
    assert f"{100 * metrics['pseudo_label_miou']:.2f}" in capsys.readouterr().out
    assert command("certify", "--certify-steps", 2, "--seeds", 1, "--out", tmp_path, *arguments) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("passed; ratios", "min_pooling", "intra"))


def test_certified_with_frozen_norms_and_dropout(tmp_path):
    certificate = certify.certify(
        job(tmp_path, "freeze_norms=true", "config.dropout=0.5"), steps=4, seeds=(0, 1), show_progress=False
    )
    assert certificate.first == Recipe.presets["shapes"]["config"]["contrast_from"]
    assert certificate.passed, certificate.ratios
    assert certificate.nudged["loss"].max() > 0


@pytest.mark.parametrize("name", ["ecr", "intra"])
def test_a_loss_that_is_wrong_by_a_thousandth_fails(name, tmp_path, monkeypatch):
    right = Recipe.step

    def wrong(self, module, batch, step):
        output = right(self, module, batch, step)
        return output._replace(losses=output.losses | {name: 1.001 * output.losses[name]})

    monkeypatch.setattr(Recipe, "step", wrong)
    certificate = certify.certify(job(tmp_path), steps=2, seeds=(0,), show_progress=False)
    assert not certificate.passed
    assert certificate.ratios[name] > 20


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_bit_for_bit(precision, tmp_path, monkeypatch):
    """With dropout, batch norms that are trained, and a contrast that begins in between."""
    options = {"precision": precision, "checkpoint_every": 2}
    more = ("config.contrast_from=1", "config.dropout=0.3")
    whole, parts = (job(tmp_path / name, *more, **options) for name in ("whole", "parts"))
    quiet(whole)
    take = Trainer.take

    def interrupted(self, step, batch):
        if step == 3:
            raise KeyboardInterrupt
        return take(self, step, batch)

    monkeypatch.setattr(Trainer, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quiet(parts)
    monkeypatch.undo()
    torch.manual_seed(123)  # what ran before does not matter
    quiet(parts, resume=True)
    assert losses(parts.run) == losses(whole.run)
    assert_same_weights(parts.run, whole.run)


# EPS, whose saliency maps are beside the photographs


def test_eps_trains_on_a_folder(tmp_path):
    root = with_saliency(make_folder(tmp_path / "voc"))
    # Photographs of 24 x 32, whose long side becomes 48 to 80.
    options = {"preset": "voc-eps", "data": "folder", "root": root}
    metrics = quiet(job(tmp_path / "run", "steps=2", **options))
    assert 0 <= metrics["pseudo_label_miou"] <= 1
    assert all(line["saliency"] > 0 for line in losses(tmp_path / "run"))


def test_absent_saliency_maps_are_an_error_at_once(tmp_path):
    root = with_saliency(make_folder(tmp_path / "voc"))
    options = {"preset": "voc-eps", "data": "folder", "root": root}
    (root / "SALImages" / "b.png").unlink()
    with pytest.raises(DataError, match=r"SALImages/b\.png: is missing, a saliency map; so are 0 of 3"):
        quiet(job(tmp_path / "run", **options))
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "SALImages" / "b.png")
    metrics = quiet(job(tmp_path / "run", "steps=1", **options))
    assert re.search(r"SALImages/b\.png: is 5 x 5 pixels, its photograph 32 x 24", metrics["skipped"][0])
    with pytest.raises(DataError, match="shapes: have no saliency maps: use another variant of the method"):
        quiet(job(tmp_path / "other", preset="voc-eps"))
    quiet(job(tmp_path / "without", "steps=1", "config.weights.saliency=0", preset="voc-eps"))


# The view


def test_view_and_saliency_show_the_same():
    """A picture that is its own saliency map, whose colours are not changed."""
    image = np.random.default_rng(0).integers(0, 256, (40, 56), np.uint8)
    view = ScaledView(ScaledCrop(48, (40, 70), (0, 0, 0, 0)), (0.0,) * 3, (255.0,) * 3, grid=3)
    for seed in range(20):
        torch.manual_seed(seed)
        sample = view(np.repeat(image[:, :, None], 3, axis=2), image)
        assert sample["images"].shape == (3, 48, 48)
        assert sample["views"]["draws"].shape == (2, 3, 3)
        torch.testing.assert_close(sample["images"][:1], sample["views"]["saliency"], atol=1e-6, rtol=0)
        y0, y1, x0, x1 = sample["boxes"]
        outside = torch.ones(48, 48, dtype=torch.bool)
        outside[y0:y1, x0:x1] = False
        assert (sample["images"][:, outside] == 0).all(), "the mean colour is around it"
        assert sample["images"][0, y0:y1, x0:x1].count_nonzero() > 0.9 * (y1 - y0) * (x1 - x0)


def test_view_is_flipped_and_scaled():
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32] = 255
    view, left, sides = ScaledView(ScaledCrop(96, (48, 96), (0, 0, 0, 0)), (0.0,) * 3, (255.0,) * 3, 2), set(), set()
    for seed in range(20):
        torch.manual_seed(seed)
        sample = view(image)
        y0, y1, x0, x1 = sample["boxes"].tolist()
        left.add(bool(sample["images"][0, y0, x0] > 0.5))
        sides.add(x1 - x0)
        assert abs((x1 - x0) - 2 * (y1 - y0)) <= 1
    assert left == {True, False}
    assert 48 <= min(sides) < 60 < 84 < max(sides) <= 96


@pytest.mark.parametrize(
    "weights",
    [{}, {"min_pooling": 0, "ecr": 0}, {"cls": 0, "er": 0}, {"cross_prototype": 0, "cross_cam": 0, "intra": 0}],
    ids=lambda weights: "without " + " and ".join(weights) if weights else "all",
)
def test_unused_parameters_are_foreseen(weights, tmp_path):
    """DistributedDataParallel must know whether some parameters get no gradient."""
    changes = [f"config.weights.{name}={weight}" for name, weight in weights.items()]
    trainer = Trainer(job(tmp_path, *changes, "config.contrast_from=0"), Processes(0, 1, torch.device("cpu")))
    (batch,) = trainer.batches(0, 1)
    batch.pop("problems")
    trainer.take(0, batch)
    unused = [name for name, p in trainer.module.named_parameters() if p.requires_grad and p.grad is None]
    assert bool(unused) == trainer.recipe.unused_parameters == bool(weights)
