"""Mean intersection over union, by the field's rule: one confusion matrix over the whole data set.

    IoU_c = n_cc / (Σ_p n_cp + Σ_t n_tc - n_cc)        n_tp: pixels of class t that were given class p

and its mean over the classes that occur in truth or prediction. Pixels whose truth is 255 do not count. A pseudo label
may be 255 as well, where it is left open, and there are two ways to see that:

    open pixels left out    what the labels are worth to a loss that ignores 255
    open pixels are wrong   what they are worth as a segmentation: they belong to no class, and are missing from theirs

Other libraries answer other questions under the same name: a mean over images, or zeros for classes that do not occur.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .files import IGNORED


@dataclass
class Confusion:
    """Counts of pixels by true and predicted class; the last column counts pixels that were left open.

    Args:
        classes: how many, with the background.
    """

    classes: int
    counts: np.ndarray = field(init=False)  # (classes, classes + 1) int64

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.classes, self.classes + 1), np.int64)

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:  # of one shape, integers
        """Count the pixels of one image or of many.

        Raises:
            ValueError: the shapes differ, or a class is neither below `classes` nor 255.
        """
        truth, prediction = np.asarray(truth), np.asarray(prediction)
        if truth.shape != prediction.shape:
            raise ValueError(f"prediction must have truth's shape, {truth.shape}, got {prediction.shape}")
        for name, labels in (("truth", truth), ("prediction", prediction)):
            wrong = labels[((labels < 0) | (labels >= self.classes)) & (labels != IGNORED)]
            if wrong.size:
                raise ValueError(f"{name} must hold classes below {self.classes} or {IGNORED}, got {wrong.flat[0]}")
        known = truth != IGNORED
        columns = np.where(prediction == IGNORED, self.classes, prediction)[known].astype(np.int64)
        cells = truth[known].astype(np.int64) * (self.classes + 1) + columns
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)

    def iou(self, *, open_is_wrong: bool = False) -> np.ndarray:  # (classes,) NaN where a class does not occur
        """The IoU of every class."""
        decided = self.counts[:, :-1]
        right = decided.diagonal()
        in_truth = (self.counts if open_is_wrong else decided).sum(1)
        union = in_truth + decided.sum(0) - right
        return np.where(union > 0, right / np.maximum(union, 1), np.nan)

    def miou(self, *, open_is_wrong: bool = False) -> float:
        """The mean over the classes that occur; NaN if none does."""
        iou = self.iou(open_is_wrong=open_is_wrong)
        return float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan")

    def report(self, names: Sequence[str]) -> dict:
        """Everything to write down: both means, the share of open pixels, and every class, None where it does not
        occur."""
        total = int(self.counts.sum())
        iou = self.iou(open_is_wrong=True)
        return {
            "miou": _plain(self.miou(open_is_wrong=True)),
            "miou_without_open": _plain(self.miou()),
            "open": int(self.counts[:, -1].sum()) / max(total, 1),
            "per_class": {name: _plain(value) for name, value in zip(names, iou, strict=True)},
        }


def _plain(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if np.isnan(value) else float(value)
