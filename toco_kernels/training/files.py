"""Photographs, masks and results on disk: what cannot be read is named, what is written is written whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

IGNORED = 255  # the class of pixels that nobody labelled
SMALLEST = 8  # pixels: the side of the smallest photograph that can show anything


class DataError(ValueError):
    """Something is wrong with the data; the message begins with the file."""

    def __init__(self, file: Path | str, problem: str):
        super().__init__(f"{file}: {problem}")
        self.file, self.problem = Path(file), problem

    def __reduce__(self):  # so that it survives the way from a worker process
        return DataError, (self.file, self.problem)


def read_image(file: Path) -> np.ndarray:  # (H, W, 3) uint8
    """A photograph in RGB.

    Grey, palette and CMYK pictures are converted, as every loader of the field does. Orientation tags are not obeyed,
    because masks are drawn over the stored pixels.

    Raises:
        DataError: the file is missing, no picture, truncated, deeper than 8 bits, or smaller than 8 pixels.
    """
    picture = _open(file)
    if picture.mode.startswith(("I", "F")):
        raise DataError(file, f"has more than 8 bits per colour (Pillow's mode {picture.mode}): convert it first")
    if min(picture.size) < SMALLEST:
        raise DataError(file, f"is {picture.width} x {picture.height} pixels, too small to show anything")
    return np.array(picture.convert("RGB"))


def read_mask(file: Path, classes: int, size: tuple[int, int] | None = None) -> np.ndarray:  # (H, W) uint8
    """The class of every pixel, from a palette or grey picture: 0 background, 255 ignored.

    Args:
        file: of the mask.
        classes: how many there are, with the background.
        size: (H, W) of the photograph.

    Raises:
        DataError: the file is missing, no picture, truncated, in colour, of another size, or has a class too many.
    """
    picture = _open(file)
    if picture.mode not in ("P", "L", "1"):
        raise DataError(file, f"is no mask: it must be a palette or grey picture of class indices, not {picture.mode}")
    mask = np.array(picture, dtype=np.uint8)
    if size is not None and mask.shape != tuple(size):
        raise DataError(file, f"is {mask.shape[1]} x {mask.shape[0]} pixels, its photograph {size[1]} x {size[0]}")
    unknown = np.unique(mask[(mask >= classes) & (mask != IGNORED)])
    if unknown.size:
        raise DataError(file, f"holds class {unknown[0]}; there are {classes} classes, 0 to {classes - 1}")
    return mask


def read_grey(file: Path, size: tuple[int, int]) -> np.ndarray:  # (H, W) uint8
    """A grey picture of the size (H, W).

    Raises:
        DataError: the file is missing, no picture, truncated, deeper than 8 bits, or of another size.
    """
    picture = _open(file)
    if picture.mode.startswith(("I", "F")):
        raise DataError(file, f"has more than 8 bits per pixel (Pillow's mode {picture.mode}): convert it first")
    if (picture.height, picture.width) != tuple(size):
        raise DataError(file, f"is {picture.width} x {picture.height} pixels, its photograph {size[1]} x {size[0]}")
    return np.array(picture.convert("L"))


def _open(file: Path) -> Image.Image:
    """The picture with all of its pixels."""
    try:
        with Image.open(file) as picture:
            picture.load()
            return picture
    except FileNotFoundError:
        raise DataError(file, "is missing") from None
    except UnidentifiedImageError:
        raise DataError(file, "is empty" if not os.path.getsize(file) else "is no picture") from None
    except Image.DecompressionBombError as error:
        raise DataError(file, f"is too large: {error}") from None
    except Exception as error:  # Pillow's readers raise whatever they like
        raise DataError(file, f"cannot be read: {error}") from None


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, without empty ones."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(file, "is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(file, f"cannot be read: {error}") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(file, "is empty")
    return lines


def read_json(file: Path) -> object:
    """What a JSON file holds."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(file, "is missing") from None
    except (OSError, ValueError) as error:
        raise DataError(file, f"cannot be read: {error}") from None


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Call `write(path)` for a file beside `file`, and give it that name once it is on the disk.

    Whoever reads `file`, at any time and after any crash, sees the old one or the new one.

    Raises:
        DataError: the disk is full or cannot be written to; the old file is still there.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with open(partial, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(partial, file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where the disk is full
        raise DataError(file, f"cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_json(file: Path, content: object) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    write_whole(file, lambda path: path.write_text(text, encoding="utf-8"))


def write_mask(file: Path, labels: np.ndarray) -> None:  # (H, W) integers in 0..255
    """Write a palette PNG of class indices, in VOC's colours, whole or not at all."""
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(voc_colours().tobytes())
    write_whole(file, lambda path: picture.save(path, format="PNG"))


def voc_colours() -> np.ndarray:  # (256, 3) uint8
    """VOC's colour of each class: the bits of its index, three by three, from the colours' highest bits down."""
    index = np.arange(256)[:, None]
    colours = np.zeros((256, 3), int)
    for bit in range(8):
        colours |= (index >> (3 * bit + np.arange(3)) & 1) << (7 - bit)
    return colours.astype(np.uint8)
