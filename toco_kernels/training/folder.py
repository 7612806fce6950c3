"""Photographs in folders: VOC2012, and any folder in its layout.

    ROOT/JPEGImages/NAME.jpg              photographs; .jpeg and .png as well
    ROOT/SegmentationClass/NAME.png       masks: palette or grey, the class of each pixel, 255 ignored
    ROOT/SALImages/NAME.png               saliency maps, for methods that take them: grey, 255 where most salient
    ROOT/Annotations/NAME.xml             VOC's annotations, for image labels
    ROOT/labels.json                      image labels: {"NAME": ["cat", "dog"], …}
    ROOT/ImageSets/Segmentation/SPLIT.txt names, one per line; or ROOT/ImageSets/SPLIT.txt
    ROOT/classes.txt                      class names, one per line, the background first; without it: VOC's

Everything that can be seen without reading pixels is checked at once, so that it is not found at night. Photographs
that cannot be used are left out with a warning where `lenient`, and an error otherwise.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from . import image_labels
from .files import DataError, read_grey, read_image, read_lines, read_mask

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
TRAIN_AUG = 10_582  # VOC's train and SBD, without VOC's val


class Folder:
    """Photographs, image labels and masks by number.

    Args:
        images: the file of every photograph, by name.
        classes: class names, the background first.
        labels: where image labels come from: "labels.json", "xml", "masks", "none", or a file like labels.json; "auto"
            takes the first of these that is there.
        masks: the folder of masks; None: there are none.
        root: where labels.json and Annotations are.
        lenient: leave out photographs that cannot be used, and say so in `warnings`.
    """

    def __init__(
        self,
        images: dict[str, Path],
        *,
        classes: Sequence[str],
        root: Path,
        masks: Path | None,
        labels: str = "auto",
        lenient: bool = False,
    ):
        self.classes, self.root, self.masks = tuple(classes), root, masks
        self.warnings: list[str] = []
        self._images: list[Path] = []
        self.names: list[str] = []
        self._labels: list[np.ndarray] = []
        if not images:
            raise DataError(root, "lists no photograph")
        self.label_source = self._source(labels)
        table = self._table()
        for name, file in images.items():
            try:
                row = self._labels_of(name, table)
                if not file.exists():
                    raise DataError(file, "is missing")
            except DataError as error:
                # An unknown class or a broken file of labels is no matter of one photograph.
                if not lenient or "unknown class" in error.problem:
                    raise
                self.warnings.append(f"{error}; left out")
                continue
            self.names.append(name)
            self._images.append(file)
            self._labels.append(row)
        if not self.names:
            raise DataError(root, f"has no usable photograph; the last problem: {self.warnings[-1]}")
        unlabelled = sum(not row.any() for row in self._labels)
        if unlabelled and self.label_source != "none":
            self.warnings.append(f"{root}: {unlabelled} photographs show none of the classes, says {self.label_source}")

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:  # (H, W, 3) uint8
        """Photograph number `index`."""
        return read_image(self._images[index])

    def size(self, index: int) -> tuple[int, int]:
        """(H, W), from the head of the file."""
        try:
            with Image.open(self._images[index]) as picture:
                return picture.height, picture.width
        except OSError:
            return read_image(self._images[index]).shape[:2]  # which says what is wrong

    def mask(self, index: int) -> np.ndarray:  # (H, W) uint8
        """The class of each of its pixels, 255 where nobody knows."""
        if self.masks is None:
            raise DataError(self.root, "has no folder of masks")
        return read_mask(self.masks / f"{self.names[index]}.png", len(self.classes), self.size(index))

    def saliency_file(self, index: int) -> Path:
        """Where its saliency map must be."""
        return self.root / "SALImages" / f"{self.names[index]}.png"

    def saliency(self, index: int) -> np.ndarray:  # (H, W) uint8
        """How salient each of its pixels is."""
        return read_grey(self.saliency_file(index), self.size(index))

    def labels(self, index: int) -> np.ndarray:  # (C,) float32
        """1 for each class that it shows."""
        if self.label_source == "none":
            raise DataError(self.root, "was opened without image labels")
        return self._labels[index].astype(np.float32)

    def _source(self, labels: str) -> str:
        if labels != "auto":
            return labels
        if (self.root / "labels.json").exists():
            return "labels.json"
        if (self.root / "Annotations").is_dir():
            return "xml"
        if self.masks is not None and self.masks.is_dir():
            return "masks"
        raise DataError(self.root, "has no image labels: neither labels.json, nor Annotations, nor masks")

    def _table(self) -> dict[str, np.ndarray] | None:
        """The image labels of one file for all photographs."""
        if self.label_source in ("xml", "masks", "none"):
            return None
        file = self.root / "labels.json" if self.label_source == "labels.json" else Path(self.label_source)
        return image_labels.read_labels(file, self.classes)

    def _labels_of(self, name: str, table: dict[str, np.ndarray] | None) -> np.ndarray:  # (C,)
        if self.label_source == "none":
            return np.zeros(len(self.classes) - 1, bool)
        if self.label_source == "xml":
            return image_labels.from_xml(self.root / "Annotations" / f"{name}.xml", self.classes)
        if self.label_source == "masks":
            if self.masks is None:
                raise DataError(self.root, "has no folder of masks to take image labels from")
            return image_labels.from_mask(self.masks / f"{name}.png", self.classes)
        if name not in table:
            raise DataError(self.root / "JPEGImages" / name, f"has no image label in {self.label_source}")
        return table[name]


def open_folder(root: Path, split: str, *, labels: str = "auto", lenient: bool = False) -> Folder:
    """A split of a folder in VOC's layout."""
    check_root(root)
    classes_file = root / "classes.txt"
    classes = read_lines(classes_file) if classes_file.exists() else list(VOC_CLASSES)
    if len(classes) < 2 or len(set(classes)) < len(classes) or len(classes) > 255:
        raise DataError(classes_file, "must name 2 to 255 different classes, the background first")
    names = read_names(split_file(root, split))
    masks = root / "SegmentationClass"
    images = {name: photograph(root, name) for name in names}
    data = Folder(
        images, classes=classes, root=root, masks=masks if masks.is_dir() else None, labels=labels, lenient=lenient
    )
    if data.label_source == "labels.json":
        for name in sorted(image_labels.read_labels(root / "labels.json", classes).keys() - images.keys()):
            if not photograph(root, name).exists():  # those of other splits have one
                data.warnings.append(f"{root / 'labels.json'}: {name} has an image label, and no photograph")
    return data


def open_voc(root: Path, split: str, *, sbd: Path | None = None, labels: str = "auto", lenient: bool = False) -> Folder:
    """A split of VOC2012: train, val, test, or train_aug, which is asserted to be the 10,582 photographs."""
    check_root(root)
    names = train_aug(root, sbd) if split == "train_aug" else read_names(split_file(root, split))
    augmented = root / "SegmentationClassAug"
    masks = augmented if split == "train_aug" and augmented.is_dir() else root / "SegmentationClass"
    images = {name: photograph(root, name) for name in names}
    if split == "test":
        labels = "none"
    return Folder(images, classes=VOC_CLASSES, root=root, masks=masks, labels=labels, lenient=lenient)


def train_aug(root: Path, sbd: Path | None = None) -> list[str]:
    """The names of VOC's train and of SBD, without VOC's val: 10,582.

    Args:
        root: VOC2012; where it has a list train_aug.txt (or trainaug.txt), that one is taken, and checked.
        sbd: SBD's folder with train.txt and val.txt.
    """
    val = set(read_names(split_file(root, "val")))
    places = [root / "ImageSets" / "Segmentation" / file for file in ("train_aug.txt", "trainaug.txt")]
    given = next((file for file in places if file.exists()), None)
    if given:
        names, source = read_names(given), given
    elif sbd is None:
        raise DataError(places[0], "is missing; give SBD's folder (--sbd DIR), and the list is made of both")
    else:
        everything = [split_file(root, "train"), sbd / "train.txt", sbd / "val.txt"]
        names = sorted({name for file in everything for name in read_names(file)} - val)
        source = sbd
    both = val.intersection(names)
    if both:
        raise DataError(source, f"holds {len(both)} photographs of val, like {min(both)}")
    if len(names) != TRAIN_AUG:
        raise DataError(source, f"must make {TRAIN_AUG} photographs of train_aug, got {len(names)}")
    return names


def check_root(root: Path) -> None:
    """`root` must be a folder."""
    if not root.is_dir():
        raise DataError(root, "is no folder" if root.exists() else "is missing")


def split_file(root: Path, split: str) -> Path:
    """Where the names of a split are listed."""
    places = [root / "ImageSets" / "Segmentation" / f"{split}.txt", root / "ImageSets" / f"{split}.txt"]
    return next((file for file in places if file.exists()), places[0])


def read_names(file: Path) -> list[str]:
    """A list of photographs. Lists of image and mask files, `/JPEGImages/NAME.jpg …`, are understood too."""
    names = [Path(line.split()[0]).stem if "/" in line else line.split()[0] for line in read_lines(file)]
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise DataError(file, f"lists {repeated[0]} more than once")
    return names


def photograph(root: Path, name: str) -> Path:
    """The file of a photograph; where there is none, the one that it should have been."""
    files = [root / "JPEGImages" / f"{name}{ending}" for ending in (".jpg", ".jpeg", ".png", ".JPG")]
    return next((file for file in files if file.exists()), files[0])
