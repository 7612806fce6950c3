"""Photographs and masks in, one picture out."""

import argparse
import colorsys
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import import_extra

if TYPE_CHECKING:
    from PIL.Image import Image

SHIPPED = ("astronaut", "chelsea", "coffee", "rocket")  # with scikit-image: nothing is downloaded
IGNORED = 255  # the class index of pixels that nobody labelled
MOST_CLASSES = 32  # the published code copies the map of each 48 times
CAPTION, GAP = 24, 8  # pixels: the height of a caption, and between columns
NARROWEST = 240  # pixels, so that captions fit


@dataclass(frozen=True)
class Photograph:
    """A picture in RGB, and what it is called."""

    name: str
    image: "Image"


def read_photograph(path: str) -> Photograph:
    """An argparse type: any picture that Pillow reads, as RGB."""
    pillow = import_extra("PIL.Image", "demo")
    try:
        return Photograph(Path(path).name, pillow.open(path).convert("RGB"))
    except Exception as error:  # Pillow's readers raise whatever they like
        raise argparse.ArgumentTypeError(f"must be a picture that Pillow can read, got {path!r} ({error})") from None


def read_mask(path: str) -> np.ndarray:  # (H, W)
    """An argparse type: the class index of every pixel, int64, from a palette or grey picture."""
    pillow = import_extra("PIL.Image", "demo")
    try:
        mask = np.asarray(pillow.open(path))
    except Exception as error:
        raise argparse.ArgumentTypeError(f"must be a picture that Pillow can read, got {path!r} ({error})") from None
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        found = f"{mask.dtype} of shape {mask.shape}"
        raise argparse.ArgumentTypeError(f"must hold one class index per pixel, got {path!r} with {found}")
    classes = np.setdiff1d(mask, [IGNORED])
    if not 2 <= len(classes) <= MOST_CLASSES:
        wanted = f"must have 2 to {MOST_CLASSES} classes beside {IGNORED}, which is ignored"
        raise argparse.ArgumentTypeError(f"{wanted}, got {path!r} with {len(classes)}")
    return mask.astype(np.int64)


def shipped_photographs() -> list[Photograph]:
    """The photographs that come with scikit-image."""
    data, pillow = import_extra("skimage.data", "demo"), import_extra("PIL.Image", "demo")
    return [Photograph(name, pillow.fromarray(getattr(data, name)())) for name in SHIPPED]


def row(
    name: str,
    pixels: np.ndarray,  # (H, W, 3) uint8
    labels: np.ndarray,  # (H, W), what the class maps were made of
    coarse: np.ndarray,  # (H, W)
    refined: np.ndarray,  # (H, W)
) -> "Image":
    """Photograph, coarse labels and refined labels side by side, with captions."""
    return side_by_side(
        [
            (name, pixels),
            (f"coarse class maps, {agreement(coarse, labels):.1%} agree", painted(pixels, coarse)),
            (f"refined labels, {agreement(refined, labels):.1%} agree", painted(pixels, refined)),
        ]
    )


def side_by_side(panels: list[tuple[str, np.ndarray]]) -> "Image":
    """Pictures (H, W, 3) of one size in a row, each below its caption."""
    pillow, draw = import_extra("PIL.Image", "demo"), import_extra("PIL.ImageDraw", "demo")
    font = import_extra("PIL.ImageFont", "demo").load_default(size=14)
    height, width, _ = panels[0][1].shape
    width = max(width, NARROWEST)
    canvas = pillow.new("RGB", (len(panels) * (width + GAP) - GAP, CAPTION + height), "white")
    for column, (caption, panel) in enumerate(panels):
        cell = pillow.new("RGB", (width, CAPTION + height), "white")  # cuts a long name
        draw.Draw(cell).text((2, 3), caption, "black", font)
        cell.paste(pillow.fromarray(panel), (0, CAPTION))
        canvas.paste(cell, (column * (width + GAP), 0))
    return canvas


def agreement(labels: np.ndarray, expected: np.ndarray) -> float:
    """The share of pixels whose label is the expected one, among those that have one."""
    known = expected != IGNORED
    return float((labels == expected)[known].mean())


def painted(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:  # (H, W, 3), (H, W) -> (H, W, 3)
    """A colour for each class over the photograph, and white lines between classes."""
    painting = np.empty_like(pixels)
    for label in np.unique(labels):
        colour = colorsys.hsv_to_rgb(0.618 * label % 1, 0.85, 0.95)  # steps by the golden ratio: neighbours differ
        where = labels == label
        painting[where] = 0.4 * pixels[where] + 0.6 * 255 * np.array(colour)
    painting[1:][labels[1:] != labels[:-1]] = 255
    painting[:, 1:][labels[:, 1:] != labels[:, :-1]] = 255
    return painting


def stack(rows: list["Image"]) -> "Image":
    """One picture, row below row."""
    size = max(picture.width for picture in rows), sum(picture.height for picture in rows)
    canvas = import_extra("PIL.Image", "demo").new("RGB", size, "white")
    top = 0
    for picture in rows:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def write(picture: "Image", file: Path) -> None:
    """Write a PNG, whole or not at all."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        picture.save(partial, format="PNG")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
