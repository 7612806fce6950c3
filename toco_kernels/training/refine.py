"""From the CAM of an image, or its segmentation, to its label: as it is, refined by affinity (PAR), or by a dense CRF.

A CAM has no background, whose score is a constant, or two: between `low` and `high`, a pixel stays open (255). Or it
has one more map, its own background, and no constant. Classes that the image does not show take no part. A segmentation
has all classes, and image labels are not asked.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..numpy import affinity_refine, dense_crf
from .files import IGNORED


@dataclass(frozen=True)
class CRF:
    """A dense CRF as one paper sets it.

    Args:
        gaussian: sigma in pixels and weight of the filter of positions.
        bilateral: sigma in pixels, sigma of colours, and weight of the filter of both.
        certainty: None, and it starts from probabilities; or from hard labels that are right with this probability.
        labels: among how many labels the rest of it is shared; None: among those that the image shows.
    """

    gaussian: tuple[float, float]
    bilateral: tuple[float, float, float]
    certainty: float | None = None
    labels: int | None = None
    iterations: int = 10


CRF_PRESETS = {
    "toco-test": CRF((1, 1), (121, 5, 4)),
    "label-crf": CRF((3, 3), (50, 5, 10), certainty=0.7),  # SEAM, EPS and PPC
    "vit-pcm": CRF((1, 3), (67, 3, 4)),
    "affinitynet": CRF((3, 3), (80, 13, 10), certainty=0.7, labels=21),  # PPC's labels for AffinityNet
}
REFINEMENTS = ("none", "par", *CRF_PRESETS)
SOURCES = ("cam", "seg")


@dataclass(frozen=True)
class Settings:
    """What a pseudo label depends on, beside the network.

    Args:
        refinement: one of REFINEMENTS.
        high, low: the background's score; pixels that only one of them calls an object stay open. One number twice:
            none stays open. None twice: CAMs have a background of their own, their first map.
        source: "cam", or "seg" for the segmentation.
        alphas: None, or the background's score is (1 - the largest CAM) to these powers, the low one in place of `high`
            and the high one in place of `low`, which are None: AffinityNet's two sets of labels.
        dilations, iterations: of PAR.
    """

    refinement: str = "par"
    high: float | None = 0.5
    low: float | None = 0.5
    source: str = "cam"
    alphas: tuple[float, float] | None = None
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24)
    iterations: int = 10

    def __post_init__(self) -> None:
        if self.refinement not in REFINEMENTS:
            raise ValueError(f"refinement must be one of {', '.join(REFINEMENTS)}, got {self.refinement!r}")
        if self.source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {self.source!r}")
        if self.alphas is not None:
            if (self.high, self.low) != (None, None) or not 0 < self.alphas[0] <= self.alphas[1]:
                raise ValueError(f"alphas must be 0 < low <= high, without thresholds, got {self.alphas}")
            return
        if self.own_background:
            return
        if self.high is None or self.low is None or not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"thresholds must be 0 <= low <= high <= 1, got low {self.low} and high {self.high}")

    @property
    def own_background(self) -> bool:
        """Whether CAMs have a map of the background."""
        return self.high is None and self.low is None and self.alphas is None

    @property
    def levels(self) -> tuple[float, float]:
        """Where the background is most, and where it is least."""
        return self.alphas or (self.high, self.low)

    def background(self, cams: np.ndarray, level: float) -> np.ndarray:  # (n, H, W) -> (1, H, W)
        """The score of the background at a level."""
        if self.alphas is None:
            return np.full_like(cams[:1], level)
        return np.maximum(0, 1 - cams.max(0, keepdims=True)) ** level

    def maps_of(self, shown: np.ndarray) -> np.ndarray:  # (n,) -> (n,) or (n + 1,)
        """The places of the maps that the classes shown, counted from 0, are decided by."""
        return np.append(0, shown + 1) if self.own_background else shown

    def as_dict(self) -> dict:
        """Every value, for JSON."""
        preset = CRF_PRESETS.get(self.refinement)
        return asdict(self) | {"dilations": list(self.dilations), "crf": asdict(preset) if preset else None}


def pseudo_label(
    image: np.ndarray,  # (H, W, 3) uint8
    maps: np.ndarray,  # CAMs (C, H, W) or (C + 1, H, W) in [0, 1], or a segmentation's probabilities (C + 1, H, W)
    labels: np.ndarray,  # (C,) 1 for the classes that the image shows; a segmentation does not ask
    settings: Settings,
) -> np.ndarray:  # (H, W) uint8: 0 background, c + 1 class c, 255 open
    """The label of every pixel of one image."""
    if settings.source == "seg":
        return refined(image, maps.astype(np.float32), settings).argmax(0).astype(np.uint8)
    present = np.flatnonzero(labels)
    if not len(present):
        return np.zeros(image.shape[:2], np.uint8)
    classes = np.append(0, present + 1).astype(np.uint8)
    if settings.own_background:
        return classes[refined(image, maps[classes].astype(np.float32), settings).argmax(0)]
    winners = {level: _decide(image, maps[present], level, settings) for level in {*settings.levels}}
    high, low = (winners[level] for level in settings.levels)
    return np.where(high > 0, classes[high], np.where(low > 0, IGNORED, 0)).astype(np.uint8)


def _decide(image: np.ndarray, cams: np.ndarray, level: float, settings: Settings) -> np.ndarray:  # (H, W)
    """Which wins: 0 the background, k + 1 the k-th class shown. The first of equals."""
    cams = cams.astype(np.float32)
    scores = np.concatenate([settings.background(cams, level), cams])
    if settings.refinement == "par":
        odds = np.exp(scores - scores.max(0))
        scores = odds / odds.sum(0)  # as ToCo does: PAR moves probabilities
    return refined(image, scores, settings).argmax(0)


def refined(image: np.ndarray, scores: np.ndarray, settings: Settings) -> np.ndarray:  # (K, H, W)
    """Class scores along the borders of the image."""
    if settings.refinement == "none":
        return scores
    colours = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    if settings.refinement == "par":
        options = {"dilations": tuple(settings.dilations), "iterations": settings.iterations}
        return affinity_refine(colours, scores, **options)
    return crf(colours, scores, CRF_PRESETS[settings.refinement])


def crf(
    image: np.ndarray,  # (3, H, W) in 0..255
    scores: np.ndarray,  # (K, H, W), not negative
    preset: CRF,
) -> np.ndarray:  # (K, H, W)
    """A dense CRF on the lattice over class scores, made probabilities by their sum, or by their argmax."""
    if preset.certainty is None or len(scores) == 1:
        start = scores / np.maximum(scores.sum(0), 1e-5)
    else:
        winner = scores.argmax(0) == np.arange(len(scores))[:, None, None]
        others = max(preset.labels or 0, len(scores)) - 1
        start = np.where(winner, preset.certainty, (1 - preset.certainty) / others)
    return dense_crf(
        image,
        start.astype(np.float32),
        kernel="lattice",
        iterations=preset.iterations,
        gaussian=preset.gaussian,
        bilateral=preset.bilateral,
    )
