"""Data sets: the shapes, folders, VOC, COCO, and image labels from a pickle."""

import json
import os
import pickle
import struct

import numpy as np
import pytest

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')

from PIL import Image
from voc_folder import CLASSES, LABELS, SIZE, make_folder

from toco_kernels.training import coco, files, folder, image_labels
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
