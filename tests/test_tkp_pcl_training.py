"""TKP-PCL on the trainer and the commands: labels with a background of their own, resume, certificate."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')
pytest.importorskip("timm", reason='needs pip install "toco-kernels[train]"')

from toco_kernels import methods
from toco_kernels.__main__ import main
from toco_kernels.training import certify, checkpoints, files, pseudo_labels
from toco_kernels.training.loop import train
from toco_kernels.training.predictor import Predictor
from toco_kernels.training.recipes import find
from toco_kernels.training.recipes.tkp_pcl import Recipe
from toco_kernels.training.refine import CRF_PRESETS, Settings, crf, pseudo_label
from toco_kernels.training.shapes import Shapes
from toco_kernels.training.trainer import Job, Trainer

TUTORIAL = Path(__file__).parents[1] / "docs" / "tkp_pcl.md"

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 64}


def job(run, steps=4, **config):
    settings = Recipe.preset("shapes", steps=steps, batch_size=4, backbone_options=SMALL)
    settings["augmentation"] = settings["augmentation"] | {"size": 64}
    settings["config"] = settings["config"] | config
    return Job(run, "tkp-pcl", settings, log_every=1, device="cpu", evaluate_images=(2, 4))


def losses(run):
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]


def test_train_label_evaluate(tmp_path, capsys):
    """The commands, from nothing to the score of a folder of labels."""
    run, labels = tmp_path / "run", tmp_path / "labels"

    def command(*words):
        return main([str(word) for word in words])

    small = ("--set", f"backbone_options={json.dumps(SMALL)}", "--set", "augmentation.size=64", "--batch-size", 4)
    arguments = ("--method", "tkp-pcl", "--steps", 3, "--device", "cpu", "--evaluate-images", 4, *small)
    assert command("train", "--out", run, "--picture-every", 3, *arguments) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 < metrics["pseudo_label_miou"] <= 1
    assert metrics["seg_miou"] is None
    assert len([*(run / "pictures").iterdir()]) == 1

    words = ("pseudo-label", "--run", run, "--out", labels, "--split", "val", "--refine", "vit-pcm", "--device", "cpu")
    with pytest.raises(SystemExit, match="class maps of this run have a background of their own"):
        command(*words, "--high", 0.5)
    few = Shapes("val", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toco_kernels.training.runs.open_data", lambda *_, **__: few)
        assert command(*words, "--workers", 1) == 0
        assert "3 labels written" in capsys.readouterr().out
        for name in few.names:
            files.read_mask(labels / f"{name}.png", 6, (96, 96))
        settings = json.loads((labels / "settings.json").read_text())
        assert (settings["high"], settings["low"], settings["refinement"]) == (None, None, "vit-pcm")
        assert command("evaluate", "--protocol", "run", "--run", run, "--device", "cpu") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["cam", "pseudo_label"]


def test_labels_are_decided_among_the_maps_themselves():
    random = np.random.default_rng(0)
    image, maps = random.integers(0, 256, (12, 16, 3), np.uint8), random.random((6, 12, 16)).astype(np.float32)
    labels = np.array([0, 1, 0, 0, 1])
    plain = pseudo_label(image, maps, labels, Settings("none", None, None))
    assert np.array_equal(plain, np.array([0, 2, 5])[maps[[0, 2, 5]].argmax(0)])
    refined = pseudo_label(image, maps, labels, Settings("vit-pcm", None, None))
    colours = image.transpose(2, 0, 1).astype(np.float32)
    expected = crf(np.ascontiguousarray(colours), maps[[0, 2, 5]], CRF_PRESETS["vit-pcm"]).argmax(0)
    assert np.array_equal(refined, np.array([0, 2, 5])[expected])
    assert (pseudo_label(image, maps, np.zeros(5), Settings("par", None, None)) == 0).all()
    with pytest.raises(ValueError, match=r"thresholds must be 0 <= low <= high <= 1, got low None and high 0\.5"):
        Settings("par", 0.5, None)


@pytest.mark.parametrize("workers", [0, 1])
def test_folders_of_labels_are_those_of_single_images(workers, tmp_path):
    data, settings = Shapes("val", 2), Settings("par", None, None)
    maps = {data.image(i).tobytes(): np.random.default_rng(i).random((6, 96, 96)).astype(np.float32) for i in range(2)}
    pseudo_labels.make(
        data, lambda image, _: maps[image.tobytes()], tmp_path, settings, workers=workers, show_progress=False
    )
    for i, name in enumerate(data.names):
        expected = pseudo_label(data.image(i), maps[data.image(i).tobytes()], data.labels(i), settings)
        assert np.array_equal(files.read_mask(tmp_path / f"{name}.png", 6, (96, 96)), expected)


def test_resumed_bit_for_bit(tmp_path, monkeypatch):
    """Across the end of the frozen steps."""
    jobs = [job(tmp_path / name, frozen_steps=2, dropout=0.2) for name in ("whole", "parts")]
    train(jobs[0], show_progress=False)
    take = Trainer.take

    def interrupted(self, step, batch):
        if step == 3:
            raise KeyboardInterrupt
        return take(self, step, batch)

    monkeypatch.setattr(Trainer, "take", interrupted)
    jobs[1].settings["config"]["k"] = 6
    with pytest.raises(KeyboardInterrupt):
        train(Job(**{**vars(jobs[1]), "checkpoint_every": 1}), show_progress=False)
    monkeypatch.undo()
    train(Job(**{**vars(jobs[1]), "checkpoint_every": 1}), resume=True, show_progress=False)
    assert losses(jobs[0].run) == losses(jobs[1].run)
    ends = [checkpoints.newest(each.run / "checkpoints")["module"] for each in jobs]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.fixture
def sure(monkeypatch):
    """Networks that are sure of some patches from the first step on, so that there is something to contrast."""
    build = Recipe.build

    def sharper(self, process_group=None):
        module = build(self, process_group)
        torch.nn.init.normal_(module.classifier.weight, std=0.3)
        return module

    monkeypatch.setattr(Recipe, "build", sharper)


@pytest.mark.usefixtures("sure")
def test_it_trains_as_the_naive_step(tmp_path):
    certificate = certify.certify(job(tmp_path, dropout=0.2, threshold=0.6), steps=5, seeds=(0, 1), show_progress=False)
    assert set(certificate.ratios) == {"loss", "mce", "pce", "weights"}
    assert certificate.passed, certificate.ratios
    assert certificate.nudged["pce"].max() > 0


@pytest.mark.usefixtures("sure")
@pytest.mark.parametrize("name", ["mce", "pce"])
def test_a_loss_that_is_wrong_by_a_thousandth_fails(name, tmp_path, monkeypatch):
    right = Recipe.step

    def wrong(self, module, batch, step):
        output = right(self, module, batch, step)
        losses = output.losses | {name: 1.001 * output.losses[name]}
        return output._replace(loss=output.loss + 0.001 * output.losses[name], losses=losses)

    monkeypatch.setattr(Recipe, "step", wrong)
    certificate = certify.certify(job(tmp_path, threshold=0.6), steps=3, seeds=(0,), show_progress=False)
    assert certificate.ratios[name] > 20


def test_published_presets():
    """Learning rates of both phases, and labels at 960 pixels, on a small backbone."""
    settings = Recipe.preset("voc", pretrained=False, backbone="vit_tiny_patch16_224", backbone_options=SMALL)
    assert (settings["batch_size"], settings["augmentation"]["size"]) == (16, 384)
    settings["config"] = settings["config"] | {"trained_blocks": 1, "label_size": 40}
    recipe = Recipe(settings, ("background", *"abcde"))
    rates = [settings["lr"] * recipe.lr_factor(step) for step in (0, 1322, 1323, 32_999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    assert recipe.certified_from() == 1323
    assert recipe.unused_parameters
    module = recipe.build().eval()
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    sizes = []
    module.backbone.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape[2:])))
    cams = Predictor(recipe, module, torch.device("cpu")).cams(image, np.array([1.0, 0, 0, 1, 0]))["cam"]
    assert cams.shape == (6, 50, 70)
    assert sizes == [(40, 40)]
    sample = recipe.views()(image)
    assert [*sample] == ["images"]
    assert sample["images"].shape == (3, 384, 384)
    assert sample["images"].abs().max() <= 1
    assert find("tkp-pcl") is Recipe


# What docs/tkp_pcl.md tells people


def test_loop_of_the_tutorial_runs(monkeypatch):
    """On a small backbone and a CPU, with weights that nobody downloads."""
    loop, labels = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)

    def small(name, config, pretrained):
        assert pretrained
        return methods.tkp_pcl.TKPPCL("vit_tiny_patch16_224", config=config, backbone_options=SMALL)

    monkeypatch.setattr(methods, "TKPPCL", small)
    config = replace(methods.TKPPCL_VOC, trained_blocks=2, frozen_steps=1, label_size=40)
    monkeypatch.setattr(methods, "TKPPCL_VOC", config)
    batch = torch.randn(2, 3, 64, 64), torch.eye(20)[:2]
    names = {"loader": [batch, batch]}
    exec(loop.replace(".cuda()", ""), names)
    assert names["step"] == 1
    assert names["output"].loss.isfinite()
    assert names["optimizer"].param_groups[0]["lr"] == 1e-4, "the frozen step is over"
    names |= {"images": batch[0][:, :, :30], "image_labels": batch[1]}
    exec(labels, names)
    assert names["maps"].shape == (2, 21, 30, 64)
    assert torch.equal(names["maps"].argmax(1), names["labels"])


def test_sweep_changes_one_value_at_a_time():
    spec = importlib.util.spec_from_file_location("tkp_pcl_sweep", TUTORIAL.with_name("tkp_pcl_sweep.py"))
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    own = Recipe.preset("shapes")["config"]
    variants = script.variants()
    assert variants.pop("preset") == {}
    for name, changes in variants.items():
        ((key, value),) = changes.items()
        assert own[key] == script.VALUES[key][0] != value, name
    rows = {name: {"cam": 0.5, "pseudo_label": 0.6} for name in ("preset", *variants)}
    assert "| `k` | 1 (max pooling) | 50.0 | 60.0 |" in script.table(rows)
    assert "| `weight` | 0.1 † | 50.0 | 60.0 |" in script.table(rows)
    text = TUTORIAL.read_text()
    assert script.START in text
    assert script.END in text
