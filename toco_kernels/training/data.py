"""The data sets that the commands know, and their splits."""

from pathlib import Path

from ..common.errors import bad_value
from .coco import open_coco
from .files import DataError
from .folder import open_folder, open_voc
from .pseudo_labels import Data
from .shapes import Shapes

# name -> what is trained on, what is looked at meanwhile, and what is measured at the end. The test split of the shapes
# is used for nothing else; that of VOC has no public truth.
SPLITS = {
    "shapes": ("train", "val", "test"),
    "voc": ("train_aug", "val", "val"),
    "coco": ("train", "val", "val"),
    "folder": ("train", "val", "val"),
}


def open_data(
    name: str,
    split: str,
    root: Path | None = None,
    *,
    sbd: Path | None = None,
    labels: str = "auto",
    lenient: bool = False,
) -> Data:
    """A split of a data set.

    Args:
        name: one of SPLITS.
        split: of it.
        root: where it is; the shapes are nowhere.
        sbd: SBD's folder, for VOC's train_aug.
        labels: where image labels come from, see `folder.Folder`.
        lenient: leave out photographs that cannot be used, with a warning.
    """
    if name not in SPLITS:
        raise bad_value("data", f"be one of {', '.join(SPLITS)}", repr(name))
    if name == "shapes":
        return Shapes(split)
    if root is None:
        raise bad_value("root", f"be the folder of {name}", "none")
    if name == "voc":
        return open_voc(root, split, sbd=sbd, labels=labels, lenient=lenient)
    if name == "coco":
        return open_coco(root, split, lenient=lenient)
    return open_folder(root, split, labels=labels, lenient=lenient)


def has_masks(data: Data) -> bool:
    """Whether there is a truth to compare with."""
    return isinstance(data, Shapes) or (data.masks is not None and data.masks.is_dir())


def check_saliency(data: Data) -> None:
    """All photographs must have a saliency map."""
    if isinstance(data, Shapes):
        raise DataError(Path("shapes"), "have no saliency maps: use another variant of the method")
    missing = [file for file in map(data.saliency_file, range(len(data))) if not file.is_file()]
    if missing:
        raise DataError(missing[0], f"is missing, a saliency map; so are {len(missing) - 1} of {len(data)}")


def spread(count: int, most: int | None) -> list[int]:
    """At most `most` of `count` indices, evenly spaced."""
    if most is None or most >= count:
        return list(range(count))
    return [index * count // most for index in range(most)]
