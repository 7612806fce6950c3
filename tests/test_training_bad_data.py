"""Everything that can be wrong with data: an error that names the file, or a warning and a photograph less."""

import errno
import json
import os

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')

from PIL import Image
from voc_folder import CLASSES, LABELS, SIZE, make_folder, write_xml

from toco_kernels.training import batches, files, folder
from toco_kernels.training.files import DataError

# Bad data. Each case: what is done to the folder, and what the error says. Some are only found when pixels are read.


def damage(root, name, content):
    (root / name).write_bytes(content)


def truncated(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def photograph(root):
    return root / "JPEGImages" / "a.jpg"


def save(picture, file):
    picture.save(file, format="PNG" if file.suffix == ".png" else "JPEG")


BAD_PHOTOGRAPHS = {  # all named in the error, and left out of training with a warning
    "missing": (lambda f: f.unlink(), "is missing"),
    "truncated": (truncated, "cannot be read: (?i:.*truncated)"),
    "without its end": (lambda f: f.write_bytes(f.read_bytes()[:-40]), "cannot be read: .*truncated"),
    "empty": (lambda f: f.write_bytes(b""), "is empty"),
    "text": (lambda f: f.write_text("not a picture"), "is no picture"),
    "a web page": (lambda f: f.write_text("<html>404</html>"), "is no picture"),
    "one pixel": (lambda f: save(Image.new("RGB", (1, 1)), f), "is 1 x 1 pixels, too small"),
    "one row": (lambda f: save(Image.new("RGB", (300, 1)), f), "is 300 x 1 pixels, too small"),
    "a folder": (lambda f: (f.unlink(), f.mkdir()), "cannot be read"),
    "16 bits": (
        lambda f: Image.fromarray(np.full(SIZE, 40000, np.uint16)).save(f, format="PNG"),
        "has more than 8 bits per colour",
    ),
    "broken header": (lambda f: f.write_bytes(f.read_bytes()[:20]), "is no picture|cannot be read"),
}


@pytest.mark.parametrize("case", BAD_PHOTOGRAPHS)
def test_bad_photograph(case, tmp_path):
    root = make_folder(tmp_path)
    do, message = BAD_PHOTOGRAPHS[case]
    do(photograph(root))
    with pytest.raises(DataError, match=rf"JPEGImages/a\.jpg: .*({message})"):  # measured: an error
        folder.open_folder(root, "train").image(0)

    data = folder.open_folder(root, "train", lenient=True)  # trained on: left out, and said so
    samples = batches.Samples(data, lambda image: {"pixels": int(image.sum())}, seed=0)
    drawn = [samples[0, index] for index in range(len(data))]
    problems = data.warnings + [problem for sample in drawn for problem in sample["problems"]]
    assert len(problems) == 1
    assert "JPEGImages/a.jpg: " in problems[0]
    other = folder.open_folder(root, "val", lenient=True)
    expected = {name: int(other.image(i).sum()) for i, name in enumerate(other.names) if name in "bcd"}
    for sample in drawn:  # another photograph, with that one's labels
        (name,) = (name for name, pixels in expected.items() if pixels == sample["pixels"])
        assert [CLASSES[1 + i] for i in np.flatnonzero(sample["image_labels"])] == LABELS[name]


GOOD_PHOTOGRAPHS = {
    "grey": lambda f: save(Image.open(f).convert("L"), f),
    "CMYK": lambda f: save(Image.open(f).convert("CMYK"), f),
    "palette": lambda f: Image.open(f).convert("P").save(f, format="PNG"),
    "with transparency": lambda f: Image.open(f).convert("RGBA").save(f, format="PNG"),
    "grey with transparency": lambda f: Image.open(f).convert("LA").save(f, format="PNG"),
}


@pytest.mark.parametrize("case", GOOD_PHOTOGRAPHS)
def test_photographs_of_other_kinds_are_made_rgb(case, tmp_path):
    root = make_folder(tmp_path)
    colours = np.zeros((*SIZE, 3), np.uint8) + np.array([200, 80, 20], np.uint8)
    Image.fromarray(colours).save(photograph(root), quality=100)
    GOOD_PHOTOGRAPHS[case](photograph(root))
    image = folder.open_folder(root, "train").image(0)
    assert image.shape == (*SIZE, 3)
    assert image.dtype == np.uint8
    wanted = [109] * 3 if "grey" in case else [200, 80, 20]
    np.testing.assert_allclose(image.reshape(-1, 3).mean(0), wanted, atol=6)


def test_orientation_tags_are_not_obeyed(tmp_path):
    root = make_folder(tmp_path)
    with Image.open(photograph(root)) as picture:
        tags = picture.getexif()
        tags[0x0112] = 6  # turn it
        picture.save(photograph(root), exif=tags)
    data = folder.open_folder(root, "train")
    assert data.image(0).shape[:2] == data.mask(0).shape == SIZE


BAD_MASKS = {
    "missing": (lambda f: f.unlink(), "is missing"),
    "truncated": (truncated, "cannot be read"),
    "of another size": (lambda f: files.write_mask(f, np.zeros((10, 12))), "is 12 x 10 pixels, its photograph 32 x 24"),
    "of a class too many": (lambda f: files.write_mask(f, np.full(SIZE, 3)), "holds class 3; there are 3 classes"),
    "in colour": (lambda f: Image.new("RGB", SIZE[::-1]).save(f), "is no mask"),
    "16 bits": (lambda f: Image.fromarray(np.zeros(SIZE, np.uint16)).save(f), "is no mask"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
@pytest.mark.parametrize("source", ["labels.json", "masks"])
def test_bad_mask(case, source, tmp_path):
    root = make_folder(tmp_path)
    do, message = BAD_MASKS[case]
    do(root / "SegmentationClass" / "a.png")
    with pytest.raises(DataError, match=rf"SegmentationClass/a\.png: {message}"):
        folder.open_folder(root, "train", labels=source).mask(0)
    if source == "masks" and case != "of another size":
        assert folder.open_folder(root, "train", labels="masks", lenient=True).names == ["b", "c"]


def change_table(root, **changes):
    table = json.loads((root / "labels.json").read_text())
    (root / "labels.json").write_text(json.dumps({**table, **changes}))


def list_of(root, text):
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text(text)


BAD_FOLDERS = {
    "no root": (lambda r: os.rename(r, f"{r}2"), "voc: is missing"),
    "a list that is not there": (lambda r: (r / "ImageSets/Segmentation/train.txt").unlink(), "train.txt: is missing"),
    "an empty list": (lambda r: list_of(r, "\n\n"), "train.txt: is empty"),
    "a list that repeats": (lambda r: list_of(r, "a\nb\na\n"), "train.txt: lists a more than once"),
    "a list in another encoding": (
        lambda r: damage(r, "ImageSets/Segmentation/train.txt", b"\xff\xfea\x00"),
        "train.txt: cannot be read",
    ),
    "a photograph without label": (lambda r: list_of(r, "a\nb\nd\ne\n"), "JPEGImages/e: has no image label in labels"),
    "an unknown class": (lambda r: change_table(r, c=["cow"]), "labels.json: names the unknown class 'cow'"),
    "the background as a label": (lambda r: change_table(r, a=["background"]), "names the unknown class 'background'"),
    "numbers for names": (lambda r: change_table(r, a=[1]), r"labels.json: must list class names .*, got \[1\]"),
    "a label that is no list": (lambda r: change_table(r, a="cat"), "labels.json: must list class names"),
    "broken labels": (lambda r: damage(r, "labels.json", b'{"a": ['), "labels.json: cannot be read"),
    "labels that are a list": (lambda r: damage(r, "labels.json", b"[]"), "labels.json: must be an object"),
    "a class twice": (lambda r: damage(r, "classes.txt", b"background\ncat\ncat"), "classes.txt: must name 2 to 255"),
    "no classes": (lambda r: damage(r, "classes.txt", b""), "classes.txt: is empty"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folder(case, tmp_path):
    root = make_folder(tmp_path / "voc")
    do, message = BAD_FOLDERS[case]
    do(root)
    with pytest.raises(DataError, match=message):
        folder.open_folder(root, "train")


def test_a_label_without_a_photograph_is_said(tmp_path):
    root = make_folder(tmp_path)
    change_table(root, ghost=["cat"])
    data = folder.open_folder(root, "train")
    assert data.names == ["a", "b", "c"]
    assert data.warnings == [f"{root}/labels.json: ghost has an image label, and no photograph"], "d is another split's"


def test_a_photograph_of_nothing_is_said(tmp_path):
    root = make_folder(tmp_path)
    change_table(root, b=[])
    (warning,) = folder.open_folder(root, "train").warnings
    assert "1 photographs show none of the classes, says labels.json" in warning


def test_a_photograph_without_label_is_left_out_of_training(tmp_path):
    root = make_folder(tmp_path)
    list_of(root, "a\ne\nb\n")
    data = folder.open_folder(root, "train", lenient=True)
    assert data.names == ["a", "b"]
    assert "JPEGImages/e: has no image label in labels.json; left out" in data.warnings[0]


def test_an_unknown_class_ends_training_too(tmp_path):
    root = make_folder(tmp_path, table=False, xml=True)
    write_xml(root, "b", ["dgo"])
    with pytest.raises(DataError, match=r"b.xml: names the unknown class 'dgo'; known are cat, dog"):
        folder.open_folder(root, "train", lenient=True)


@pytest.mark.parametrize(("content", "message"), [(b"<annotation><object>", "cannot be read"), (None, "is missing")])
def test_bad_xml(content, message, tmp_path):
    root = make_folder(tmp_path, table=False, xml=True)
    file = root / "Annotations" / "b.xml"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(DataError, match=rf"b\.xml: {message}"):
        folder.open_folder(root, "train")
    data = folder.open_folder(root, "train", lenient=True)
    assert data.names == ["a", "c"]
    assert len(data.warnings) == 1


def test_nothing_to_label_with(tmp_path):
    root = make_folder(tmp_path, masks=False, table=False)
    with pytest.raises(DataError, match=r"has no image labels: neither labels.json, nor Annotations, nor masks"):
        folder.open_folder(root, "train")
    with pytest.raises(DataError, match="has no folder of masks"):
        folder.open_folder(root, "train", labels="masks")


def test_no_photograph_can_be_used(tmp_path):
    root = make_folder(tmp_path)
    for file in (root / "JPEGImages").iterdir():
        file.write_text("gone")
    data = folder.open_folder(root, "train", lenient=True)
    with pytest.raises(DataError, match="and all other photographs cannot be used"):
        batches.Samples(data, lambda image: {}, seed=0)[0, 1]
    for file in (root / "JPEGImages").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"has no usable photograph; the last problem: .*c.jpg: is missing"):
        folder.open_folder(root, "train", lenient=True)


def test_full_disk(tmp_path, monkeypatch):
    file = tmp_path / "m.png"
    files.write_mask(file, np.zeros(SIZE))
    before = file.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DataError, match=r"m\.png: cannot be written: .*No space left"):
        files.write_mask(file, np.ones(SIZE))
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["m.png"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_is_really_full(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        files.write_whole(tmp_path / "x", lambda path: (path.symlink_to("/dev/full"), path.write_bytes(b"0" * 9999)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_thread")
def test_a_disk_that_fills_while_training(tmp_path, monkeypatch):
    """The last good checkpoint stays, and the run goes on from it."""
    from test_training_loop import job, losses, quiet

    from toco_kernels.training import checkpoints

    save, saved = torch.save, []

    def until_full(state, path):
        if saved:
            path.write_bytes(b"half of it")
            raise RuntimeError("PytorchStreamWriter failed writing file data/3: No space left on device")
        save(state, path)
        saved.append(path)

    run = tmp_path / "run"
    monkeypatch.setattr(checkpoints.torch, "save", until_full)
    with pytest.raises(DataError, match=r"step-00000004\.pt: cannot be written: .*No space left"):
        quiet(job(run, checkpoint_every=2))
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["step-00000002.pt"]
    monkeypatch.undo()
    quiet(job(run, checkpoint_every=2), resume=True)
    quiet(job(tmp_path / "whole"))
    assert losses(run) == losses(tmp_path / "whole")


@pytest.mark.usefixtures("one_thread")
def test_a_damaged_checkpoint_is_named(tmp_path):
    from test_training_loop import job, quiet

    quiet(job(tmp_path, checkpoint_every=3))
    last = tmp_path / "checkpoints" / "step-00000006.pt"
    last.write_bytes(last.read_bytes()[:500])
    with pytest.raises(DataError, match=r"step-00000006\.pt: is no checkpoint"):
        quiet(job(tmp_path, checkpoint_every=3), resume=True)
