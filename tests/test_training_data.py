"""Data sets, and everything that can be wrong with them."""

import errno
import json
import os
import pickle
import struct

import numpy as np
import pytest

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')

from PIL import Image
from voc_folder import CLASSES, LABELS, SIZE, make_folder, write_xml

from toco_kernels.training import batches, coco, files, folder, image_labels
from toco_kernels.training.files import DataError
from toco_kernels.training.shapes import KINDS, SPLITS, Shapes

# The shapes


def test_shapes_are_what_they_say():
    data = Shapes("train", 200)
    assert len(data) == 200
    assert len(data.classes) == 6
    counts, shown = np.zeros(6, int), []
    for index in range(len(data)):
        image, mask, labels = data.image(index), data.mask(index), data.labels(index)
        assert image.shape == (96, 96, 3)
        assert image.dtype == mask.dtype == np.uint8
        present = np.unique(mask)
        np.testing.assert_array_equal(np.flatnonzero(labels) + 1, present[present > 0])
        counts[present] += 1
        shown.append(int(labels.sum()))
    assert set(shown) == {1, 2, 3}
    assert counts[0] == 200
    assert counts[1:].min() > 40


def test_every_shape_has_a_hue_of_its_own():
    data = Shapes("train", 120)
    hues = {label: [] for label in range(1, 6)}
    for index in range(len(data)):
        hue = np.array(Image.fromarray(data.image(index)).convert("HSV"))[..., 0] / 255
        mask = data.mask(index)
        for label in np.unique(mask[mask > 0]):
            angle = np.angle(np.exp(2j * np.pi * hue[mask == label]).mean()) / (2 * np.pi) % 1
            hues[label].append(angle)
    for label, (_, wanted, _, _) in enumerate(KINDS.values(), 1):
        away = abs((np.array(hues[label]) - wanted + 0.5) % 1 - 0.5)
        assert away.max() < 0.09, "classes are 0.2 apart"


def test_shapes_are_the_same_every_time_and_differ_between_splits():
    first, again = (Shapes("test", 3).image(2) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != Shapes("val", 3).image(2)).any()
    assert (first != Shapes("test", 3).image(1)).any()
    image = Shapes("test").image(0)
    image[:] = 0  # what is returned belongs to the caller
    assert Shapes("test").image(0).any()


@pytest.mark.parametrize("arguments", [("tests",), ("val", 0), ("val", SPLITS["val"] + 1)])
def test_shapes_that_are_not_there(arguments):
    with pytest.raises(ValueError, match="must be"):
        Shapes(*arguments)
    with pytest.raises(IndexError):
        Shapes("val", 5).image(5)


# A folder that is as it should be


@pytest.mark.parametrize("source", ["labels.json", "xml", "masks"])
def test_image_labels_from(source, tmp_path):
    root = make_folder(tmp_path / "voc", xml=source == "xml", table=source == "labels.json")
    data = folder.open_folder(root, "train")
    assert data.label_source == source
    assert data.names == ["a", "b", "c"]
    assert data.classes == CLASSES
    assert data.warnings == []
    np.testing.assert_array_equal([data.labels(i) for i in range(3)], [[1, 0], [0, 1], [1, 1]])
    assert data.image(0).shape == (*SIZE, 3)
    assert set(np.unique(data.mask(2))) == {0, 1, 2, 255}
    assert folder.open_folder(root, "train", labels="masks").label_source == "masks"


def test_lists_of_files_are_understood(tmp_path):
    root = make_folder(tmp_path)
    listed = root / "ImageSets" / "Segmentation" / "train.txt"
    listed.write_text("/JPEGImages/b.jpg /SegmentationClass/b.png\n/JPEGImages/a.jpg /SegmentationClass/a.png\n")
    assert folder.open_folder(root, "train").names == ["b", "a"]


def test_masks_are_written_in_vocs_colours(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    files.write_mask(tmp_path / "m.png", labels)
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.mode == "P"
        palette = np.array(picture.getpalette()).reshape(-1, 3)
    colours = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 255: (224, 224, 192)}
    np.testing.assert_array_equal(palette[[*colours]], [*colours.values()])
    np.testing.assert_array_equal(files.read_mask(tmp_path / "m.png", 256), labels)


# VOC2012


def voc_lists(root, *, sbd_extra=0, overlap=0):
    """Lists with VOC's numbers: 1464 train, 1449 val; SBD's 11355 hold 1117 + … of both, so that 10582 come out."""
    sets = root / "voc" / "ImageSets" / "Segmentation"
    sets.mkdir(parents=True)
    train, val = [f"t{i}" for i in range(1464)], [f"v{i}" for i in range(1449)]
    (sets / "train.txt").write_text("\n".join(train))
    (sets / "val.txt").write_text("\n".join(val))
    sbd = root / "sbd"
    sbd.mkdir()
    new = [f"s{i}" for i in range(10_582 - 1464 + sbd_extra)]
    everything = new + train[:1000] + val[:1237]
    (sbd / "train.txt").write_text("\n".join(everything[:8498]))
    (sbd / "val.txt").write_text("\n".join(everything[8498:]))
    return root / "voc", sbd


def test_train_aug_is_made_of_voc_and_sbd(tmp_path):
    root, sbd = voc_lists(tmp_path)
    names = folder.train_aug(root, sbd)
    assert len(names) == len(set(names)) == 10_582
    assert not any(name.startswith("v") for name in names)
    assert sum(name.startswith("t") for name in names) == 1464
    (root / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("\n".join(names))
    assert folder.train_aug(root) == names


def test_train_aug_with_a_photograph_too_many(tmp_path):
    root, sbd = voc_lists(tmp_path, sbd_extra=1)
    with pytest.raises(DataError, match=r"sbd: must make 10582 photographs of train_aug, got 10583"):
        folder.train_aug(root, sbd)


def test_train_aug_that_holds_photographs_of_val(tmp_path):
    root, sbd = voc_lists(tmp_path)
    names = [*folder.train_aug(root, sbd)[:-1], "v7"]
    (root / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("\n".join(names))
    with pytest.raises(DataError, match="holds 1 photographs of val, like v7"):
        folder.train_aug(root)


def test_train_aug_without_sbd(tmp_path):
    root, _ = voc_lists(tmp_path)
    with pytest.raises(DataError, match=r"train_aug.txt: is missing; give SBD's folder"):
        folder.open_voc(root, "train_aug")


# COCO 2014


def instances(root, annotations):
    """Two photographs with annotations and one without, and categories with COCO's gaps."""
    (root / "annotations").mkdir(parents=True)
    names = [f"COCO_val2014_{i:012d}" for i in range(3)]
    (root / "val2014").mkdir()
    for name in names:
        Image.new("RGB", (20, 10), "grey").save(root / "val2014" / f"{name}.jpg")
    content = {
        "images": [{"id": i, "file_name": f"{name}.jpg", "height": 10, "width": 20} for i, name in enumerate(names)],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        "annotations": annotations,
    }
    file = root / "annotations" / "instances_val2014.json"
    file.write_text(json.dumps(content))
    return names


BOX = [[2, 2, 12, 2, 12, 8, 2, 8]]
INNER = [[4, 4, 8, 4, 8, 6, 4, 6]]


def test_coco_to_masks(tmp_path, monkeypatch):
    names = instances(
        tmp_path,
        [
            {"image_id": 0, "category_id": 18, "area": 60, "segmentation": BOX},
            {"image_id": 0, "category_id": 90, "area": 8, "segmentation": INNER},  # on top, whatever the order
            {"image_id": 1, "category_id": 1, "area": 9, "segmentation": {"size": [10, 20], "counts": [25, 5, 170]}},
        ],
    )
    monkeypatch.setitem(coco.COUNTS, "val2014", 2)
    data = coco.open_coco(tmp_path, "val")
    assert data.names == names[:2], "the third has no instance"
    assert data.classes == ("background", "person", "dog", "toothbrush")
    np.testing.assert_array_equal([data.labels(0), data.labels(1)], [[0, 1, 1], [1, 0, 0]])
    expected = np.zeros((10, 20), np.uint8)
    expected[2:8, 2:12] = 2
    expected[4:6, 4:8] = 3
    np.testing.assert_array_equal(data.mask(0), expected)
    expected = np.zeros((10, 20), np.uint8)
    expected[5:10, 2] = 1  # runs go down the columns
    np.testing.assert_array_equal(data.mask(1), expected)
    assert coco.open_coco(tmp_path, "val", names=names[1:2]).names == names[1:2]


def test_coco_outlines_are_filled_as_cocos_tools_do():
    golden = np.load(f"{os.path.dirname(__file__)}/golden/coco_outlines.npz")
    sizes, starts, points = golden["sizes"], golden["starts"], golden["points"]
    masks = np.split(golden["masks"], np.cumsum(sizes.prod(1))[:-1])
    for i, (height, width) in enumerate(sizes):
        polygon = points[starts[i] : starts[i + 1]].ravel().tolist()
        np.testing.assert_array_equal(coco.fill([polygon], (height, width)).ravel(), masks[i])
        run_lengths = {"size": [height, width], "counts": str(golden["compressed"][i])}
        np.testing.assert_array_equal(coco.fill(run_lengths, (height, width)).ravel(), masks[i])


def test_coco_with_too_few_photographs(tmp_path):
    instances(tmp_path, [{"image_id": 0, "category_id": 18, "area": 60, "segmentation": BOX}])
    with pytest.raises(DataError, match=r"val2014.json: must list 40137 photographs, got 1"):
        coco.open_coco(tmp_path, "val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 2}, "has the unknown category 2 in COCO_val2014_000000000000"),
        ({"segmentation": {"size": [10, 20], "counts": [5, 6]}}, "has a broken outline in COCO_val2014_000000000000"),
        ({"segmentation": [[1, 2, 3]]}, "has a broken outline in COCO_val2014_000000000000"),
        ({"image_id": None}, None),
    ],
)
def test_broken_coco(change, message, tmp_path):
    annotation = {"image_id": 0, "category_id": 18, "area": 60, "segmentation": BOX} | change
    if message is None:
        del annotation["image_id"]
        message = "is not COCO's list of instances"
    instances(tmp_path, [annotation])
    with pytest.raises(DataError, match=f"instances_val2014.json: {message}"):
        coco.open_coco(tmp_path, "val")
    assert not (tmp_path / "masks" / "val2014.json").exists()


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
    assert data.warnings == ["labels.json: ghost has an image label, and no photograph"], "d is another split's"


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


# The field's pickle


def pickled(file, content):
    np.save(file, content, allow_pickle=True)


def test_pickled_labels_are_converted(tmp_path, capsys):
    rows = {"a": np.float32([1, 0]), "b": np.float32([0, 1]), "c": np.float32([1, 1]), "d": np.float32([0, 1])}
    pickled(tmp_path / "cls_labels_onehot.npy", rows)
    root = make_folder(tmp_path / "voc", table=False)
    arguments = [str(tmp_path / "cls_labels_onehot.npy"), str(root / "labels.json"), "--classes", f"{root}/classes.txt"]
    assert image_labels.main(arguments) == 0
    assert capsys.readouterr().out == "4 images\n"
    assert json.loads((root / "labels.json").read_text()) == LABELS
    assert folder.open_folder(root, "train").label_source == "labels.json"


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/toco_kernels_was_here",)


def with_protocol(file, content, protocol):
    header = repr({"descr": "|O", "fortran_order": False, "shape": ()}).encode()
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    array = np.empty((), object)
    array[()] = content
    file.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickle.dumps(array, protocol))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_of_every_age(protocol, tmp_path):
    with_protocol(tmp_path / "x.npy", {"a": np.float32([1, 0]), "b": np.float64([0, 1])}, protocol)
    assert image_labels.read_pickled_labels(tmp_path / "x.npy", CLASSES) == {"a": ["cat"], "b": ["dog"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Evil()}, "it asks for posix.system, which is neither array nor dictionary"),
        ({"a": np.float32([1, 0, 0])}, "must hold 2 zeros and ones for a"),
        ({"a": np.float32([0.5, 0])}, "must hold 2 zeros and ones for a"),
        ({"a": "cat"}, "must hold 2 zeros and ones for a"),
        ([1, 2], "it holds an array of int64, not one dictionary"),
        ("text", "it holds an array of <U4, not one dictionary"),
    ],
)
def test_pickles_with_something_else(content, message, tmp_path):
    pickled(tmp_path / "x.npy", content)
    with pytest.raises(DataError, match=rf"x\.npy: .*{message}"):
        image_labels.read_pickled_labels(tmp_path / "x.npy", CLASSES)
    assert not os.path.exists("/tmp/toco_kernels_was_here")


def test_pickles_are_not_read_without_being_asked(tmp_path):
    root = make_folder(tmp_path)
    pickled(root / "labels.npy", {})
    with pytest.raises(DataError, match=r"is a pickle; convert it once: python -m toco_kernels.training.image_labels"):
        folder.open_folder(root, "train", labels=str(root / "labels.npy"))
