"""The one view that AffinityNet trains on: a crop of a photograph, and of a label sure of some pixels."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from ..methods import grid_labels
from .files import IGNORED
from .views import as_tensor, normalised, place


@dataclass(frozen=True)
class LabelledCrop:
    """How the view is made; the defaults are the published ones.

    Args:
        size: side of the view in pixels, a multiple of 8.
        scale: the photograph is enlarged by this first.
        jitter: of brightness, contrast, saturation and hue; of the crop, where the published code jitters all of the
            photograph before it is cropped.
    """

    size: int
    scale: float = 1.0
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)


class LabelledView:
    """The view of a photograph and its label, with random numbers from torch's global generator.

    Args:
        crop: how it is made.
        mean, std: of the colours in 0..255, to normalise by. Around the photograph is the mean colour, and no label.
        stride: of the grid that labels are decided on, in pixels.
    """

    def __init__(self, crop: LabelledCrop, mean: tuple[float, ...], std: tuple[float, ...], stride: int):
        self.of, self.mean, self.std, self.stride = crop, mean, std, stride
        self.jitter = v2.ColorJitter(*crop.jitter)

    def __call__(
        self,
        image: np.ndarray,  # (H, W, 3) uint8
        label: np.ndarray,  # (H, W) uint8
    ) -> dict:
        """`images`, and `views` with `labels` on the grid, of one photograph."""
        height, width = image.shape[:2]
        scaled = [max(1, round(side * self.of.scale)) for side in (height, width)]
        mirrored = torch.rand(()) < 0.5
        (top, y0, y1), (left, x0, x1) = (place(side, self.of.size) for side in scaled)

        def cut(picture: Tensor) -> Tensor:
            picture = F.horizontal_flip(picture) if mirrored else picture
            return picture[:, top : top + y1 - y0, left : left + x1 - x0]

        def placed(picture: Tensor, around: float) -> Tensor:
            canvas = picture.new_full((len(picture), self.of.size, self.of.size), around)
            canvas[:, y0:y1, x0:x1] = picture
            return canvas

        photograph, shown = as_tensor(image), torch.from_numpy(label)[None]
        if scaled != [height, width]:
            photograph = F.resize(photograph, scaled, antialias=True)
            shown = F.resize(shown, scaled, InterpolationMode.NEAREST_EXACT)
        photograph = normalised(self.jitter(cut(photograph)), self.mean, self.std)
        labels = grid_labels(placed(cut(shown), IGNORED), stride=self.stride)[0]
        return {"images": placed(photograph, 0.0), "boxes": torch.tensor([y0, y1, x0, x1]), "views": {"labels": labels}}
