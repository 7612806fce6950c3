"""The training loop: the same losses whoever computes them, resumed or not, and whatever kills it."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')
pytest.importorskip("timm", reason='needs pip install "toco-kernels[train]"')

from PIL import Image
from ppc_inputs import small_job
from voc_folder import make_folder

from toco_kernels.training import checkpoints, recipes
from toco_kernels.training.files import DataError
from toco_kernels.training.loop import train
from toco_kernels.training.processes import Processes
from toco_kernels.training.recipes import toco
from toco_kernels.training.shapes import Shapes
from toco_kernels.training.trainer import Job, Trainer, TrainingError

pytestmark = pytest.mark.usefixtures("one_thread")


TINY = str(Path(__file__).with_name("tiny_method.py"))


def job(run, *, preset="shapes", settings=None, **options):
    values = recipes.find(TINY).preset(preset, **(settings or {}))
    return Job(run, TINY, values, **{"log_every": 1, "device": "cpu", "evaluate_images": (2, 4), **options})


def quiet(job, **options):
    return train(job, show_progress=False, **options)


def losses(run):
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]


def final_weights(run):
    return checkpoints.newest(run / "checkpoints")["module"]


def assert_same_weights(a, b):
    a, b = final_weights(a), final_weights(b)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# What a run leaves


def test_a_run(tmp_path, capsys):
    metrics = train(job(tmp_path, picture_every=4, evaluate_every=6))
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert re.search(r"\d\d:\d\d<\d\d:\d\d, .*loss=\d.*cls=\d.*agree=\d", shown), "time left, and losses"
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["split"] == "test"
    assert metrics["images"] == 4
    for name in ("cam", "pseudo_label", "seg"):
        assert 0 <= metrics[f"{name}_miou"] <= 1
        assert set(metrics["details"][name]["per_class"]) == set(Shapes.classes)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["seed"] == 0
    assert config["settings"]["lr"] == 1e-2
    assert config["versions"]["torch"] == torch.__version__
    assert config["label_source"] == "generated"
    assert len(config["weights_sha256"]) == 64
    assert [line["step"] for line in losses(tmp_path)] == [*range(6)]
    assert set(losses(tmp_path)[0]) == {"step", "loss", "cls", "agree"}
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [file.name for file in pictures] == ["step-00000003.png", "step-00000005.png"], "every four, and the last"
    with Image.open(pictures[0]) as picture:
        assert picture.size == (5 * 160, 4 * 160)
    assert len(checkpoints.files(tmp_path / "checkpoints")) == 1


def test_tensorboard_events(tmp_path):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    quiet(job(tmp_path, picture_every=3, evaluate_every=3))
    events = loading.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [*range(6)]
    assert [e.value for e in events.Scalars("train/cls")] == pytest.approx([x["cls"] for x in losses(tmp_path)])
    assert [e.step for e in events.Scalars("evaluation/cam_miou")] == [2, 5]
    assert [e.step for e in events.Images("pictures")] == [2, 5]


def test_it_learns(tmp_path):
    quiet(job(tmp_path, settings={"steps": 60, "batch_size": 8}, evaluate_images=(1, 1)))
    values = [line["cls"] for line in losses(tmp_path)]
    assert np.mean(values[-10:]) < 0.85 * np.mean(values[:5])


# Determinism


def test_the_same_again_and_other_seeds(tmp_path):
    for name, options in (("a", {}), ("b", {"workers": 2}), ("c", {"seed": 1})):
        quiet(job(tmp_path / name, **options))
    assert losses(tmp_path / "a") == losses(tmp_path / "b"), "workers change nothing"
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert losses(tmp_path / "a")[0]["loss"] != losses(tmp_path / "c")[0]["loss"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_resumed_bit_for_bit(precision, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    quiet(job(whole, precision=precision, checkpoint_every=2))
    take = Trainer.take

    def interrupted(self, step, batch):
        if step == 5:
            raise KeyboardInterrupt
        return take(self, step, batch)

    monkeypatch.setattr(Trainer, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quiet(job(parts, precision=precision, checkpoint_every=2))
    assert len(losses(parts)) == 5, "step 4 was not in a checkpoint, and is taken again"
    monkeypatch.undo()
    torch.manual_seed(123)  # what ran before does not matter
    quiet(job(parts, precision=precision, checkpoint_every=2), resume=True)
    assert losses(parts) == losses(whole)
    assert_same_weights(parts, whole)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_resumed_bit_for_bit_on_a_gpu(precision, tmp_path):
    whole, parts = (replace(job(tmp_path / name, checkpoint_every=3), precision=precision) for name in ("w", "p"))
    for each in (whole, parts):
        quiet(replace(each, device="cuda"))
    (parts.run / "checkpoints" / "step-00000006.pt").unlink()
    quiet(replace(parts, device="cuda"), resume=True)
    assert losses(parts.run) == losses(whole.run)
    assert_same_weights(parts.run, whole.run)


def test_a_finished_run_is_only_measured(tmp_path):
    first = quiet(job(tmp_path))
    again = quiet(job(tmp_path), resume=True)
    assert again["details"] == first["details"]
    assert len(losses(tmp_path)) == 6


def test_a_run_is_resumed_as_it_was_begun(tmp_path):
    quiet(job(tmp_path))
    with pytest.raises(DataError, match="holds a run already: --resume it"):
        quiet(job(tmp_path))
    with pytest.raises(DataError, match=r"config.json: says otherwise \(seed: 0 then, 1 now, weights_sha256: .*\)"):
        quiet(job(tmp_path, seed=1), resume=True)
    quiet(job(tmp_path, workers=1), resume=True)  # which changes no number


def test_a_loss_that_is_no_number_ends_it(tmp_path):
    settings = {"lr": float("inf")}
    with pytest.raises(TrainingError, match=r"at step \d+ is no number"):
        quiet(job(tmp_path, settings=settings))


# Data that cannot be used


def test_training_goes_on_without_broken_photographs(tmp_path, capsys):
    root = make_folder(tmp_path / "voc")
    (root / "JPEGImages" / "a.jpg").write_bytes((root / "JPEGImages" / "a.jpg").read_bytes()[:400])
    (root / "JPEGImages" / "b.jpg").unlink()
    val = root / "ImageSets" / "Segmentation" / "val.txt"
    val.write_text("c\nd\n")
    metrics = quiet(job(tmp_path / "run", preset="voc", data="folder", root=root))
    text = capsys.readouterr().err
    assert "warning: " in text
    assert "b.jpg: is missing; left out" in text
    assert len(metrics["skipped"]) == 1
    assert "a.jpg: cannot be read" in metrics["skipped"][0]
    assert text.count("a.jpg") == 1, "said once"
    assert "1 photographs could not be used" in text
    assert metrics["split"] == "val"
    val.write_text("a\nc\n")  # a mean over fewer would be another number
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read"):
        quiet(job(tmp_path / "other", preset="voc", data="folder", root=root))


def test_without_masks_nothing_is_measured_and_pictures_are_drawn(tmp_path):
    root = make_folder(tmp_path / "voc", masks=False)
    unmasked = job(tmp_path / "run", preset="voc", data="folder", root=root, picture_every=3, evaluate_every=3)
    with pytest.warns(UserWarning, match="there are no masks to measure with"):
        metrics = quiet(unmasked)
    assert metrics["cam_miou"] is metrics["seg_miou"] is None
    with Image.open(tmp_path / "run" / "pictures" / "step-00000002.png") as picture:
        assert picture.size == (4 * 160, 4 * 160), "no truth"


def test_without_a_list_of_photographs_to_measure_it_trains(tmp_path):
    root = make_folder(tmp_path / "voc")
    (root / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.warns(UserWarning, match=r"there is no list val\.txt: nothing is measured or drawn"):
        metrics = quiet(job(tmp_path / "run", preset="voc", data="folder", root=root, picture_every=3))
    assert metrics["cam_miou"] is None
    assert metrics["steps"] == len(losses(tmp_path / "run")) == 3


# Several processes

SMALL = {"dropout": 0.0, "batch_size": 8}


def toco_job(run):
    """All losses that are sums over the joined batch: of all but `seg`, whose means are over a process's own pixels."""
    settings = toco.Recipe.preset("shapes", batch_size=4, steps=3)
    settings["backbone_options"] = settings["backbone_options"] | {"embed_dim": 32, "depth": 3, "num_heads": 2}
    settings["augmentation"] = settings["augmentation"] | {"size": 64}
    weights = {"cls": 1.0, "cls_aux": 1.0, "ptc": 0.2, "ctc": 0.5, "reg": 0.05}
    stages = [{"until": None, "weights": weights, "labels_from": "main"}]
    small = {"local_crops": 2, "local_size": 24, "projection": (32, 16, 16), "stages": stages}
    settings["config"] = settings["config"] | small
    return Job(run, "toco", settings, log_every=1, device="cpu", evaluate_images=(2, 4))


def ppc_job(run):
    """All losses. Batch norms are frozen, as published, and nothing is dropped: those would be of a process's own."""
    return small_job(run, "steps=3", "freeze_norms=true", "config.contrast_from=1")


def train_in_each(folder):
    """What every process does. A group is joined once: a second one may meet what is left of the first."""
    processes = Processes.join("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Processes, "leave", lambda self: None)
        quiet(job(folder / "two", settings=SMALL, checkpoint_every=3))
        quiet(job(folder / "both", settings=SMALL, checkpoint_every=3), resume=True)
        quiet(toco_job(folder / "toco-two"))
        quiet(ppc_job(folder / "ppc-two"))
    processes.leave()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of runs by one process and by two, which torchrun starts once for all of them."""
    folder = tmp_path_factory.mktemp("processes")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("one", "both"):  # the latter: begun by one process, ended by two
        quiet(job(folder / name, settings=SMALL, checkpoint_every=3))
    (folder / "both" / "checkpoints" / "step-00000006.pt").unlink()
    quiet(toco_job(folder / "toco-one"))
    quiet(ppc_job(folder / "ppc-one"))
    torch.set_num_threads(threads)
    script = folder / "child.py"
    lines = f"import pathlib, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_training_loop\n"
    script.write_text(lines + f"test_training_loop.train_in_each(pathlib.Path({str(folder)!r}))\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_two_processes_give_the_losses_of_one(trained):
    ours, theirs = losses(trained / "one"), losses(trained / "two")
    assert [line["step"] for line in theirs] == [*range(6)]
    for one, two in zip(ours, theirs, strict=True):
        for name in ("loss", "cls", "agree"):
            assert two[name] == pytest.approx(one[name], rel=1e-5, abs=1e-7), (name, one, two)
    ours, theirs = final_weights(trained / "one"), final_weights(trained / "two")
    for name, weights in ours.items():
        torch.testing.assert_close(theirs[name], weights, rtol=1e-3, atol=1e-5)
    assert json.loads((trained / "two" / "config.json").read_text())["world"] == 2
    measured = [json.loads((trained / name / "metrics.json").read_text())["cam_miou"] for name in ("one", "two")]
    assert measured[0] == pytest.approx(measured[1], abs=0.01)


def test_two_processes_train_toco_as_one_does(trained):
    for one, two in zip(losses(trained / "toco-one"), losses(trained / "toco-two"), strict=True):
        for name in ("loss", "cls", "cls_aux", "ptc", "ctc", "reg"):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), (name, one, two)
        assert one["ptc"] > 0
        assert one["ctc"] > 0


def test_two_processes_train_ppc_as_one_does(trained):
    for one, two in zip(losses(trained / "ppc-one"), losses(trained / "ppc-two"), strict=True):
        for name in one:
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), (name, one, two)
    assert one["intra"] > 0


def test_two_processes_are_resumed(trained):
    ours, theirs = losses(trained / "one"), losses(trained / "both")
    assert [line["step"] for line in theirs] == [*range(6)]
    assert theirs[:3] == ours[:3]
    for one, two in zip(ours[3:], theirs[3:], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


# Killed at any moment

STEPS = 400


def train_until_killed(run):
    torch.set_num_threads(1)
    quiet(job(Path(run), settings={"steps": STEPS, "batch_size": 2}, checkpoint_every=3), resume=True)


def has_taken(run, steps, before):
    """Whether it has come that far, in a file of losses that it has begun anew."""
    file = run / "losses.jsonl"
    return file.exists() and file.stat().st_ino != before and len(file.read_text().splitlines()) >= steps


def test_killed_twenty_times(tmp_path, monkeypatch):
    moments = random.Random(0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(Path(__file__).parent)]))
    context = get_context("forkserver")  # its server has imported everything, and children begin at once
    context.set_forkserver_preload(["test_training_loop", "torch.utils.tensorboard"])
    run, reached, lost = tmp_path / "run", 0, []
    for _ in range(20):
        before = (run / "losses.jsonl").stat().st_ino if reached else 0
        child = context.Process(target=train_until_killed, args=(str(run),))
        child.start()
        deadline = time.monotonic() + 60
        steps = reached + moments.randint(1, 7)
        while not has_taken(run, steps, before):
            assert time.monotonic() < deadline
            assert child.exitcode is None
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.03))
        assert child.exitcode is None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        taken = len([line for line in (run / "losses.jsonl").read_text().splitlines() if line.endswith("}")])
        state = checkpoints.newest(run / "checkpoints")
        saved = state["step"] if state else 0
        assert saved >= reached, "nothing is lost twice"
        lost.append(taken - saved)
        reached = saved
    assert max(lost) <= 3, "at most the steps since the last checkpoint"
    assert reached > 20
    assert len(checkpoints.files(run / "checkpoints")) <= checkpoints.KEPT + 1

    take = Trainer.take

    def until_there(self, step, batch):
        if step == reached:
            raise KeyboardInterrupt
        return take(self, step, batch)

    monkeypatch.setattr(Trainer, "take", until_there)
    with pytest.raises(KeyboardInterrupt):
        train_until_killed(tmp_path / "whole")
    assert_same_weights(run, tmp_path / "whole")  # twenty-one pieces are as good as one


def test_processes_alone():
    alone = Processes.join("cpu")
    assert (alone.rank, alone.world, alone.first, alone.group) == (0, 1, True, None)
    assert alone.gather(3) == [3]
    assert torch.equal(alone.mean(torch.ones(2)), torch.ones(2))
    alone.wait()
    alone.leave()
