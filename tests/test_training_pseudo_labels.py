"""From CAMs to pseudo labels, and to files of them."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')

from PIL import Image
from voc_folder import make_folder

import toco_kernels.numpy as kernels
from toco_kernels.training import files, folder, pseudo_labels
from toco_kernels.training.files import DataError
from toco_kernels.training.refine import CRF_PRESETS, Settings, crf, pseudo_label
from toco_kernels.training.shapes import Shapes


def scene():
    """A photograph with a bright square, and CAMs that know roughly where it is: of class 1, and of an absent one."""
    random = np.random.default_rng(0)
    truth = np.zeros((48, 64), np.uint8)
    truth[12:36, 20:44] = 2
    image = np.where(truth[..., None] > 0, 210, 40) + random.integers(0, 10, (48, 64, 3))
    cams = np.zeros((3, 48, 64), np.float32)
    y, x = np.mgrid[:48, :64]
    cams[1] = np.exp(-((y - 20) ** 2 + (x - 28) ** 2) / 300)
    cams[2] = 1  # absent: never read
    cams[0] = np.nan
    return image.astype(np.uint8), cams, np.float32([0, 1, 0]), truth


def share_right(label, truth):
    return (label == truth).mean()


def test_without_refinement_it_is_a_threshold():
    image, cams, labels, _ = scene()
    label = pseudo_label(image, cams, labels, Settings("none", 0.5, 0.5))
    np.testing.assert_array_equal(label, np.where(cams[1] > 0.5, 2, 0))


def test_between_two_thresholds_pixels_stay_open():
    image, cams, labels, _ = scene()
    label = pseudo_label(image, cams, labels, Settings("none", 0.7, 0.3))
    np.testing.assert_array_equal(label, np.select([cams[1] > 0.7, cams[1] > 0.3], [2, 255], 0))


@pytest.mark.parametrize("refinement", ["par", *CRF_PRESETS])
def test_refinement_finds_the_border(refinement):
    image, cams, labels, truth = scene()
    raw = share_right(pseudo_label(image, cams, labels, Settings("none", 0.4, 0.4)), truth)
    refined = share_right(pseudo_label(image, cams, labels, Settings(refinement, 0.4, 0.4)), truth)
    assert refined > raw
    assert raw < 0.93


def test_par_is_that_of_the_training_step():
    import torch

    from toco_kernels import refine_cam_labels

    image, cams, labels, _ = scene()
    ours = pseudo_label(image, cams, labels, Settings("par", 0.5, 0.3))
    colours = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
    tensors = (colours, torch.from_numpy(cams), torch.from_numpy(labels))
    theirs = refine_cam_labels(*(x[None] for x in tensors), high=0.5, low=0.3, down_scale=1)
    assert (ours != theirs[0].numpy()).mean() < 0.002  # where two scores are within rounding


PAPERS = {  # filters of positions and of colours, as sigmas and weight
    "toco-test": {"gaussian": (1, 1), "bilateral": (121, 5, 4)},
    "label-crf": {"gaussian": (3, 3), "bilateral": (50, 5, 10)},
    "vit-pcm": {"gaussian": (1, 3), "bilateral": (67, 3, 4)},
    "affinitynet": {"gaussian": (3, 3), "bilateral": (80, 13, 10)},
}


@pytest.mark.parametrize("name", CRF_PRESETS)
def test_crf_presets_are_what_the_papers_say(name):
    image, cams, _, _ = scene()
    scores = np.stack([np.full((48, 64), 0.4, np.float32), cams[1]])
    colours = image.transpose(2, 0, 1).astype(np.float32)
    start = scores / scores.sum(0)
    if name in ("label-crf", "affinitynet"):  # from labels that are right with probability 0.7
        other = 0.3 / {"label-crf": 1, "affinitynet": 20}[name]
        start = np.where(np.stack([start[0] >= start[1], start[0] < start[1]]), 0.7, other).astype(np.float32)
    expected = kernels.dense_crf(colours, start, kernel="lattice", iterations=10, **PAPERS[name])
    np.testing.assert_allclose(crf(colours, scores, CRF_PRESETS[name]), expected, atol=1e-6)


def test_a_photograph_of_nothing_is_background():
    image, cams, labels, _ = scene()
    for refinement in ("none", "par", "toco-test"):
        assert not pseudo_label(image, cams, 0 * labels, Settings(refinement)).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("crf",), "refinement must be one of none, par, toco-test, label-crf, vit-pcm, affinitynet, got 'crf'"),
        (("par", 0.3, 0.5), "thresholds must be 0 <= low <= high <= 1, got low 0.5 and high 0.3"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Settings(*arguments)


# Files of them


def truth_as_cams(image, labels):
    """A network that sees where the shapes are: by their colours, which are strong."""
    strong = np.ptp(image, axis=2) > 90
    return labels[:, None, None] * strong


def read_all(out):
    return {file.name: file.read_bytes() for file in sorted(out.glob("*.png"))}


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_of_a_data_set(workers, tmp_path):
    data, settings = Shapes("val", 6), Settings("none")
    report = pseudo_labels.make(data, truth_as_cams, tmp_path, settings, workers=workers, show_progress=False)
    assert (report.written, report.kept, report.skipped) == (6, 0, [])
    for index, name in enumerate(data.names):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.mode == "P"
        written = files.read_mask(tmp_path / f"{name}.png", 6, (96, 96))
        cams = truth_as_cams(data.image(index), data.labels(index))
        np.testing.assert_array_equal(written, pseudo_label(data.image(index), cams, data.labels(index), settings))
        assert written.any()
    assert files.read_json(tmp_path / "settings.json")["refinement"] == "none"


def test_an_interrupted_run_goes_on(tmp_path):
    data, settings = Shapes("val", 5), Settings("none")
    asked = []

    def cams_of(image, labels):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return truth_as_cams(image, labels)

    with pytest.raises(KeyboardInterrupt):
        pseudo_labels.make(data, cams_of, tmp_path / "a", settings, show_progress=False)
    assert len(read_all(tmp_path / "a")) == 2
    report = pseudo_labels.make(data, cams_of, tmp_path / "a", settings, show_progress=False)
    assert (report.written, report.kept) == (3, 2)
    pseudo_labels.make(data, truth_as_cams, tmp_path / "b", settings, show_progress=False)
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")


def test_two_kinds_of_labels_are_not_mixed(tmp_path):
    data = Shapes("val", 2)
    pseudo_labels.make(data, truth_as_cams, tmp_path, Settings("none"), made_with={"w": 1}, show_progress=False)
    for settings, made_with, change in (
        (Settings("par"), {"w": 1}, "refinement: none then, par now"),
        (Settings("none"), {"w": 2}, "w: 1 then, 2 now"),
    ):
        with pytest.raises(DataError, match=f"holds labels made otherwise .*{change}"):
            pseudo_labels.make(data, truth_as_cams, tmp_path, settings, made_with=made_with, show_progress=False)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(DataError, match=r"holds pictures, and no settings.json"):
        pseudo_labels.make(data, truth_as_cams, tmp_path, Settings("none"), show_progress=False)


def test_a_photograph_that_cannot_be_read_is_skipped_and_counted(tmp_path, capsys):
    root = make_folder(tmp_path / "voc")
    (root / "JPEGImages" / "b.jpg").write_text("gone")
    data = folder.open_folder(root, "train")
    out = tmp_path / "out"
    report = pseudo_labels.make(data, truth_as_cams, out, Settings("none"))
    assert report.written == 2
    (problem,) = report.skipped
    assert "b.jpg: is no picture" in problem
    assert "skipped" in capsys.readouterr().err
    assert [*read_all(out)] == ["a.png", "c.png"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_ends_it(workers, tmp_path):
    data, out = Shapes("val", 3), tmp_path / "out"
    (out / f"{data.names[1]}.png").mkdir(parents=True)  # cannot be replaced by a file …
    (out / f"{data.names[1]}.png" / "x").touch()
    os.rename(out / f"{data.names[1]}.png", out / "kept")
    pseudo_labels.claim(out, Settings("none").as_dict())

    def cams_of(image, labels):
        if not (out / f"{data.names[1]}.png").exists():  # … and is there only once it is needed
            os.rename(out / "kept", out / f"{data.names[1]}.png")
        return truth_as_cams(image, labels)

    with pytest.raises(DataError, match=f"{data.names[1]}.png: cannot be written"):
        pseudo_labels.make(data, cams_of, out, Settings("none"), workers=workers, show_progress=False)


def test_workers_import_no_torch():
    program = "import sys, toco_kernels.training.pseudo_labels; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_a_killed_run_leaves_whole_files(tmp_path):
    program = f"""
import numpy as np
from pathlib import Path
from toco_kernels.training import pseudo_labels
from toco_kernels.training.refine import Settings
from toco_kernels.training.shapes import Shapes
cams = lambda image, labels: labels[:, None, None] * np.ones((96, 96))
pseudo_labels.make(Shapes("train"), cams, Path({str(tmp_path / "out")!r}), Settings("none"))
"""
    child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    while not list((tmp_path / "out").glob("*.png")):
        time.sleep(0.01)
        assert child.poll() is None
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = list((tmp_path / "out").glob("*.png"))
    assert done
    for file in done:
        files.read_mask(file, 6, (96, 96))


def test_labels_from_a_segmentation():
    """All classes take part, and image labels are not asked."""
    image, _, labels, truth = scene()
    random = np.random.default_rng(1)
    scores = np.eye(4, dtype=np.float32)[truth].transpose(2, 0, 1) + random.uniform(0, 1.2, (4, 48, 64))
    scores = scores.astype(np.float32) / scores.sum(0)
    raw = pseudo_label(image, scores, labels, Settings("none", source="seg"))
    np.testing.assert_array_equal(raw, scores.argmax(0))
    refined = pseudo_label(image, scores, 0 * labels, Settings("toco-test", source="seg"))
    assert share_right(raw, truth) < 0.97 < share_right(refined, truth)


def test_a_segmentation_needs_no_image_labels(tmp_path):
    data = folder.open_folder(make_folder(tmp_path / "voc"), "train", labels="none")

    def one_hot(image, labels):
        return np.stack([np.zeros(image.shape[:2]), np.ones(image.shape[:2]), np.zeros(image.shape[:2])])

    pseudo_labels.make(data, one_hot, tmp_path / "out", Settings("none", source="seg"), show_progress=False)
    assert files.read_mask(tmp_path / "out" / "b.png", 3).min() == 1
