"""COCO 2014: from the instances to a mask of 81 classes for every photograph, once.

    ROOT/train2014/*.jpg  ROOT/val2014/*.jpg
    ROOT/annotations/instances_train2014.json  instances_val2014.json
    ROOT/masks/train2014/NAME.png  …           made here, then ROOT/masks/train2014.json: names and image labels

Photographs without any instance are left out, as in the field: 82,081 for training and 40,137 for validation. Where
objects overlap the smaller one is on top. Outlines are filled by the rule of COCO's own tools, to the pixel.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .files import DataError, read_json, write_json, write_mask
from .folder import Folder, check_root

COUNTS = {"train2014": 82_081, "val2014": 40_137}
SPLITS = {"train": "train2014", "val": "val2014"}


def open_coco(root: Path, split: str, *, names: Sequence[str] | None = None, lenient: bool = False) -> Folder:
    """A split of COCO 2014; masks that are not there yet are made first.

    Args:
        root: of the data set.
        split: "train" or "val".
        names: only these photographs, like COCO_val2014_000000000042.
        lenient: leave out photographs that cannot be used.
    """
    check_root(root)
    if split not in SPLITS:
        raise DataError(root, f"has the splits {', '.join(SPLITS)}, not {split!r}")
    folder = SPLITS[split]
    index = root / "masks" / f"{folder}.json"
    classes_file = root / "masks" / "classes.json"
    if not index.exists():
        convert(root, folder)
    everything = sorted(read_json(index))
    if len(everything) != COUNTS[folder]:
        raise DataError(index, f"must list {COUNTS[folder]} photographs, got {len(everything)}")
    if names is not None and (unknown := sorted(set(names) - set(everything))):
        raise DataError(index, f"does not list {unknown[0]}")
    images = {name: root / folder / f"{name}.jpg" for name in (everything if names is None else names)}
    masks = root / "masks" / folder
    return Folder(images, classes=read_json(classes_file), root=root, masks=masks, labels=str(index), lenient=lenient)


def convert(root: Path, folder: str) -> None:
    """Make masks and image labels from instances_<folder>.json. What an interrupted run has made is kept."""
    source = root / "annotations" / f"instances_{folder}.json"
    content = read_json(source)
    try:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        class_of = {category["id"]: index for index, category in enumerate(categories, 1)}
        classes = ["background", *(category["name"] for category in categories)]
        by_image = defaultdict(list)
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        images = sorted((image for image in content["images"] if image["id"] in by_image), key=lambda x: x["id"])
    except (KeyError, TypeError) as error:
        raise DataError(source, f"is not COCO's list of instances: {error!r}") from None
    labels = {}
    for image in tqdm(images, desc=f"masks of {folder}", unit="image"):
        name, size = Path(image["file_name"]).stem, (image["height"], image["width"])
        annotations = by_image[image["id"]]
        unknown = {annotation["category_id"] for annotation in annotations} - class_of.keys()
        if unknown:
            raise DataError(source, f"has the unknown category {min(unknown)} in {name}")
        labels[name] = [classes[index] for index in sorted({class_of[x["category_id"]] for x in annotations})]
        mask_file = root / "masks" / folder / f"{name}.png"
        if mask_file.exists():
            continue
        mask = np.zeros(size, np.uint8)
        for annotation in sorted(annotations, key=lambda annotation: -annotation["area"]):
            try:
                mask[fill(annotation["segmentation"], size)] = class_of[annotation["category_id"]]
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(source, f"has a broken outline in {name}: {error!r}") from None
        write_mask(mask_file, mask)
    write_json(root / "masks" / "classes.json", classes)
    write_json(root / "masks" / f"{folder}.json", labels)  # last: that it is there means that all masks are


def fill(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:  # (H, W) bool
    """Where an object is: the union of its polygons [x0, y0, x1, y1, …], or its run lengths, plain or compressed."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        counts = _decompress(counts) if isinstance(counts, str) else np.asarray(counts)
        if tuple(segmentation["size"]) != tuple(size) or counts.sum() != size[0] * size[1]:
            raise ValueError(f"run lengths of {segmentation['size']} for an image of {size}")
        return _columns(np.arange(len(counts)) % 2 == 1, counts, size)
    inside = np.zeros(size, bool)
    for polygon in segmentation:
        inside |= _fill_polygon(np.asarray(polygon, float).reshape(-1, 2), size)
    return inside


def _columns(values: np.ndarray, counts: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # (H, W)
    """Run lengths go down the columns."""
    return np.repeat(values, counts).reshape(size[1], size[0]).T


def _decompress(text: str) -> np.ndarray:
    """COCO's compressed run lengths: base 32, low digits first, each count as its difference to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        value |= (digit & 0x1F) << shift
        shift += 5
        if not digit & 0x20:  # the last digit of a count
            if digit & 0x10:  # negative
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return np.array(counts)


def _fill_polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # (n, 2) -> (H, W)
    """Fill a polygon as COCO's tools do: walk along its outline on a grid five times as fine, and note where it crosses
    the middle of a column. Pixels below an odd number of crossings of their column are inside."""
    height, width = size
    fine = (5 * points + 0.5).astype(int)
    walk = [_line(a, b) for a, b in zip(fine, np.roll(fine, -1, axis=0), strict=True) if (a != b).any()]
    if not walk:
        return np.zeros(size, bool)
    u, v = np.concatenate(walk).T
    moved = np.flatnonzero(u[1:] != u[:-1]) + 1
    x = (u[moved] - (u[moved] > u[moved - 1]) + 0.5) / 5 - 0.5
    y = np.ceil((np.minimum(v[moved], v[moved - 1]) + 0.5) / 5 - 0.5).clip(0, height)
    middle = (x == np.floor(x)) & (x >= 0) & (x <= width - 1)
    crossings = np.sort((x[middle] * height + y[middle]).astype(int))
    runs = np.diff(crossings, prepend=0, append=height * width)
    return _columns(np.arange(len(runs)) % 2 == 1, runs, size)


def _line(start: np.ndarray, end: np.ndarray) -> np.ndarray:  # (2,), (2,) -> (n, 2)
    """The points between two points of the grid, one for each step along the longer axis."""
    span = abs(end - start)
    axis = int(span[1] > span[0])
    low, high = (start, end) if start[axis] <= end[axis] else (end, start)
    steps = np.arange(span[axis] + 1)
    slope = (high[1 - axis] - low[1 - axis]) / span[axis]
    line = np.empty((len(steps), 2), int)
    line[:, axis] = low[axis] + steps
    line[:, 1 - axis] = (low[1 - axis] + slope * steps + 0.5).astype(int)
    return line if low is start else line[::-1]
