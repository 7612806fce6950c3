"""A small folder in VOC's layout, to break in every way."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from toco_kernels.training.files import write_mask

CLASSES = ("background", "cat", "dog")
LABELS = {"a": ["cat"], "b": ["dog"], "c": ["cat", "dog"], "d": ["dog"]}
SIZE = (24, 32)


def make_folder(root: Path, *, masks: bool = True, xml: bool = False, table: bool = True) -> Path:
    """Four photographs of noise: a shows a cat, b a dog, c both, d a dog; a, b and c are train, all four val."""
    for folder in ("JPEGImages", "ImageSets/Segmentation", *(["SegmentationClass"] if masks else [])):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, classes in LABELS.items():
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        if masks:
            mask = np.zeros(SIZE, np.uint8)
            mask[0] = 255
            for label in classes:
                number = CLASSES.index(label)
                mask[4 * number : 4 * number + 4, 5:20] = number
            write_mask(root / "SegmentationClass" / f"{name}.png", mask)
        if xml:
            write_xml(root, name, classes)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nb\nc\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\nc\nd\n")
    if table:
        (root / "labels.json").write_text(json.dumps(LABELS))
    return root


def write_xml(root: Path, name: str, classes: list[str]) -> None:
    (root / "Annotations").mkdir(exist_ok=True)
    objects = "".join(f"<object><name>{c}</name><difficult>1</difficult></object>" for c in classes)
    (root / "Annotations" / f"{name}.xml").write_text(f"<annotation><folder>VOC</folder>{objects}</annotation>")
