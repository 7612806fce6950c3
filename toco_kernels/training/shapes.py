"""Generated photographs: five kinds of shapes on smooth coloured backgrounds, with masks, and nothing to download.

Every class has a hue, a stripe texture and an outline of its own, so that a network learns to tell them apart in
minutes on a CPU. An image holds one to three objects of any classes. The splits never share an image: the test split is
there to be measured once, not to choose by.
"""

import colorsys
from collections.abc import Callable
from functools import lru_cache

import numpy as np

SIDE = 96  # pixels
SPLITS = {"train": 4096, "val": 256, "test": 512}  # how many images
FARTHEST = 1.25  # from an object's centre to its farthest corner, in its radius
_SEED = 2023


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x**2 + y**2 < 1


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x), abs(y)) < 0.85


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (y < 0.7) & (y > 2 * abs(x) - 1.1)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.maximum(abs(x), abs(y)) < 1) & (np.minimum(abs(x), abs(y)) < 0.4)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _disc(x, y) & (x**2 + y**2 > 0.2)


# name -> outline within [-1, 1]², hue, direction of the stripes in turns, stripes from one side to the other
KINDS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], float, float, float]] = {
    "disc": (_disc, 0.0, 0.0, 4.0),
    "square": (_square, 0.2, 0.125, 6.0),
    "triangle": (_triangle, 0.4, 0.25, 4.0),
    "cross": (_cross, 0.6, 0.375, 6.0),
    "ring": (_ring, 0.8, 0.0, 8.0),
}


class Shapes:
    """A split of the generated images, with the interface of `folder.Folder`.

    Args:
        split: "train", "val" or "test".
        size: how many images, at most as many as the split has; None: all of them.
    """

    label_source = "generated"
    classes = ("background", *KINDS)

    def __init__(self, split: str, size: int | None = None):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        count = SPLITS[split] if size is None else size
        if not 1 <= count <= SPLITS[split]:
            raise ValueError(f"size must be 1 to {SPLITS[split]}, got {size}")
        self.split = split
        self.names = [f"{split}_{index:05d}" for index in range(count)]
        self.warnings: list[str] = []

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:  # (SIDE, SIDE, 3) uint8
        """Image number `index`."""
        return _draw(self.split, self._checked(index))[0].copy()

    def mask(self, index: int) -> np.ndarray:  # (SIDE, SIDE) uint8
        """The class of each of its pixels."""
        return _draw(self.split, self._checked(index))[1].copy()

    def labels(self, index: int) -> np.ndarray:  # (5,) float32
        """1 for each class that it shows."""
        return np.isin(np.arange(1, len(self.classes)), self.mask(index)).astype(np.float32)

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return index


@lru_cache(maxsize=64)  # image, mask and labels are asked for one after the other
def _draw(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:  # (SIDE, SIDE, 3), (SIDE, SIDE) uint8
    random = np.random.default_rng([_SEED, list(SPLITS).index(split), index])
    pixels = _background(random)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(random.integers(1, 4)):
        label = int(random.integers(1, len(Shapes.classes)))
        for _ in range(10):  # until it covers little of what is there, or else it is left out
            where, inside, colour = _object(random, Shapes.classes[label])
            if (mask[where][inside] > 0).mean() < 0.1:
                pixels[where][inside], mask[where][inside] = colour[inside], label
                break
    pixels += random.normal(0, 0.02, pixels.shape)
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8), mask


def _background(random: np.random.Generator) -> np.ndarray:  # (SIDE, SIDE, 3) in [0, 1]
    """Sixteen pale colours, and what lies smoothly between them."""
    knots = random.uniform(0.35, 0.75, (4, 4, 3))
    place = np.linspace(0, 3, SIDE)
    weights = np.maximum(0, 1 - abs(place[:, None] - np.arange(4)))
    weights = weights**2 * (3 - 2 * weights)  # smooth steps, which sum to 1 as straight ones do
    return np.tensordot(weights, np.tensordot(weights, knots, (1, 1)), (1, 1))


def _object(
    random: np.random.Generator, kind: str
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:  # a part of the image, and of that (h, w) and (h, w, 3)
    """Around an object: where it is, and the colours it has there."""
    outline, hue, direction, stripes = KINDS[kind]
    radius = random.uniform(13, 26)
    centre = random.uniform(radius, SIDE - radius, 2)
    turn = random.uniform(-0.3, 0.3)
    top, left = np.maximum(0, centre - FARTHEST * radius).astype(int)
    bottom, right = np.minimum(SIDE, centre + FARTHEST * radius + 1).astype(int)
    where = slice(top, bottom), slice(left, right)
    y, x = (np.mgrid[where] + 0.5 - centre[:, None, None]) / radius
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    angle = 2 * np.pi * direction
    wave = np.sin(np.pi * stripes * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 2 * np.pi))
    hue = (hue + random.uniform(-0.03, 0.03)) % 1
    light, dark = (np.array(colorsys.hsv_to_rgb(hue, 0.85, value)) for value in (0.95, 0.55))
    return where, outline(x, y), np.where(wave[..., None] > 0, light, dark)
