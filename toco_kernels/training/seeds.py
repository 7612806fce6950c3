"""Seeds: what a first network found, kept for a second one that refines it.

    SEEDS/NAME.png      a label of the pixels that one can be sure of, 255 elsewhere, which the second one learns from
    SEEDS/NAME.npz      the class maps, which it is applied to

`pseudo-label --keep-maps` writes both. The maps of absent classes are not there, so that a folder for VOC is no larger
than its photographs.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .files import DataError, read_json, write_whole


def label_file(folder: Path, name: str) -> Path:
    """Where the label of a photograph is."""
    return folder / f"{name}.png"


def maps_file(folder: Path, name: str) -> Path:
    """Where its class maps are."""
    return folder / f"{name}.npz"


def write_maps(
    file: Path,
    maps: np.ndarray,  # (n, H, W) in [0, 1]
    classes: Sequence[int],  # (n,) 0 the background, where it has a map of its own
) -> None:
    """Write class maps, whole or not at all; in half precision, to three digits."""

    def write(path: Path) -> None:
        with open(path, "wb") as opened:  # savez_compressed would add an ending to a name
            np.savez_compressed(opened, maps=maps.astype(np.float16), classes=np.asarray(classes, np.uint8))

    write_whole(file, write)


def read_maps(file: Path, classes: int, size: tuple[int, int]) -> np.ndarray:  # (C, H, W) or (C + 1, H, W) float32
    """Class maps of one photograph: of all C classes, 0 for absent ones; and before them the background's, where it
    has one of its own.

    Args:
        file: what `write_maps` wrote.
        classes: how many there are, with the background: C + 1.
        size: (H, W) of the photograph.

    Raises:
        DataError: the file is missing, no such file, of another size, or has a class too many.
    """
    try:
        with np.load(file, allow_pickle=False) as opened:
            maps, places = opened["maps"], opened["classes"].astype(int)
    except FileNotFoundError:
        raise DataError(file, "is missing, the seed of a photograph") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(file, f"holds no class maps: {error}") from None
    if maps.ndim != 3 or places.shape != maps.shape[:1] or maps.dtype.kind != "f":
        raise DataError(file, f"must hold floating-point maps (n, H, W) and n classes, got {maps.dtype} {maps.shape}")
    if maps.shape[1:] != tuple(size):
        height, width = maps.shape[1:]
        raise DataError(file, f"is {width} x {height} pixels, its photograph {size[1]} x {size[0]}")
    if places.size and (places.max() >= classes or len(set(places.tolist())) < len(places)):
        raise DataError(
            file, f"holds the classes {places.tolist()}; there are {classes}, 0 to {classes - 1}, each once"
        )
    found = np.zeros((classes, *size), np.float32)
    found[places] = maps
    return found if 0 in places else found[1:]


def of(folder: Path, data, index: int, image: np.ndarray) -> np.ndarray:  # (H, W, 3) -> (C or C + 1, H, W)
    """The class maps of photograph number `index` of a data set, which is `image`."""
    return read_maps(maps_file(folder, data.names[index]), len(data.classes), image.shape[:2])


def made_with(folder: Path) -> object:
    """What `pseudo-label` says of them; None for a folder that something else wrote."""
    file = folder / "settings.json"
    return read_json(file) if file.exists() else None


def absent(files: Sequence[Path]) -> list[Path]:
    """Those that are not there."""
    return [file for file in files if not file.is_file()]
