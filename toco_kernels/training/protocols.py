"""How published numbers are measured, and which numbers to expect from the authors' checkpoints.

The mean IoU is that of `miou`. CAMs are cut at one background score, and classes that an image does not show are left
out; the segmentation is not told what an image shows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .coco import open_coco
from .files import DataError, read_lines, read_mask
from .folder import open_voc
from .miou import Confusion
from .pseudo_labels import Data
from .refine import Settings

QUANTITIES = ("cam", "aux_cam", "seg")


@dataclass(frozen=True)
class Protocol:
    """One way to measure.

    Args:
        summary: what it is.
        data: "voc" or "coco", of which the validation split.
        images: how many there are, asserted.
        size: photographs are squashed to this side in pixels; None: they keep their size.
        quantities: what is measured.
        expected: for each backbone what the authors' checkpoint gave, in the order of `quantities`, in percent.
        scales, flip, merge: of the segmentation, see `recipes.Recipe.predict`.
        refinement: of the segmentation.
        listed: whether the photographs are in a list of the user's.
    """

    summary: str
    data: str
    images: int
    size: int | None
    quantities: tuple[str, ...]
    expected: dict[str, tuple[float, ...]]
    scales: tuple[float, ...] = (1.0,)
    flip: str | None = None
    merge: str = "max"
    refinement: str = "none"
    listed: bool = False

    def open(self, root: Path, names: Path | None = None) -> Data:
        """The photographs, as many as there must be."""
        if self.data == "voc":
            data = open_voc(root, "val")
        else:
            if self.listed and names is None:
                raise DataError(root, f"needs the list of the {self.images} photographs (--list FILE)")
            data = open_coco(root, "val", names=read_lines(names) if self.listed else None)
        if len(data) != self.images:
            raise DataError(root, f"must have {self.images} photographs for this, got {len(data)}")
        return data

    def settings(self) -> Settings:
        """How the segmentation is refined."""
        return Settings(self.refinement, source="seg")


PROTOCOLS = {
    "toco-voc-val": Protocol(
        "VOC val, squashed to 448 x 448; the segmentation at one scale, CAMs at those of the training",
        "voc",
        1449,
        448,
        QUANTITIES,
        {"DeiT-B": (70.49, 62.47, 68.10), "ViT-B": (72.33, 68.35, 69.22)},
    ),
    "toco-voc-ms-crf": Protocol(
        "VOC val at its size, three scales, mirror images added, and a CRF",
        "voc",
        1449,
        None,
        ("seg",),
        {"DeiT-B": (69.8,), "ViT-B": (71.1,)},
        scales=(1.0, 1.5, 1.25),
        flip="sum",
        refinement="toco-test",
    ),
    "toco-coco-part": Protocol(
        "4,999 photographs of COCO val, squashed to 448 x 448, at one scale",
        "coco",
        4999,
        448,
        QUANTITIES,
        {"DeiT-B": (41.93, 30.93, 40.57), "ViT-B": (43.38, 41.16, 42.41)},
        listed=True,
    ),
    "toco-coco-ms-crf": Protocol(
        "COCO val, squashed to 448 x 448, the sum of three scales, the larger of image and mirror image, and a CRF",
        "coco",
        40_137,
        448,
        ("seg",),
        {"DeiT-B": (41.3,), "ViT-B": (42.2,)},
        scales=(1.0, 1.25, 1.5),
        flip="max",
        merge="sum",
        refinement="toco-test",
    ),
}


def compare(data: Data, folder: Path, indices: Iterable[int], *, show_progress: bool = True) -> Confusion:
    """How good a folder of labels NAME.png is. One that is missing, or of another size, is an error."""
    counted = Confusion(len(data.classes))
    for index in tqdm([*indices], desc="comparing", unit="image", leave=False, disable=not show_progress):
        truth = data.mask(index)
        counted.update(truth, read_mask(folder / f"{data.names[index]}.png", len(data.classes), truth.shape))
    return counted


def table(rows: Sequence[tuple[str, dict]], protocol: Protocol | None) -> list[tuple[str, ...]]:
    """What is printed: measured mIoU in percent, and what to expect."""
    expected = protocol.expected if protocol else {}
    lines = [("", "mIoU", "255 left out", "open", *expected)]
    for name, report in rows:
        place = protocol.quantities.index(name) if protocol else None
        numbers = [f"{numbers[place]:.2f}" for numbers in expected.values()]
        lines.append(
            (name, _percent(report["miou"]), _percent(report["miou_without_open"]), _percent(report["open"]), *numbers)
        )
    return lines


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f}"
