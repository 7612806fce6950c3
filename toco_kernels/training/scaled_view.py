"""The one view that PPC, SEAM and EPS train on: a crop of a rescaled photograph, and of its saliency map.

The second view is the first, made smaller, by the method itself.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from .views import as_tensor, normalised, place


@dataclass(frozen=True)
class ScaledCrop:
    """How the view is made; the defaults are the published ones.

    Args:
        size: side of the view in pixels.
        long_side: the photograph is resized so that its longer side is a random number of pixels between these two.
        jitter: of brightness, contrast, saturation and hue; of the crop, where the published code jitters all of the
            photograph before it is cropped, and contrast is about the mean of another part of it.
    """

    size: int
    long_side: tuple[int, int] = (448, 768)
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)


class ScaledView:
    """The view of a photograph, with random numbers from torch's global generator.

    Args:
        crop: how it is made.
        mean, std: of the colours in 0..255, to normalise by. Around the photograph is the mean colour.
        grid: side of the second view in pixels of the network, of which each gets two random numbers.
    """

    def __init__(self, crop: ScaledCrop, mean: tuple[float, ...], std: tuple[float, ...], grid: int):
        self.of, self.mean, self.std, self.grid = crop, mean, std, grid
        self.jitter = v2.ColorJitter(*crop.jitter)

    def __call__(
        self,
        image: np.ndarray,  # (H, W, 3) uint8
        saliency: np.ndarray | None = None,  # (H, W) uint8
    ) -> dict:
        """`images`, `boxes`, and `views` with `draws` and, where it is given, `saliency`, of one photograph."""
        low, high = self.of.long_side
        height, width = image.shape[:2]
        factor = int(torch.randint(low, high + 1, ())) / max(height, width)
        scaled = [max(1, round(height * factor)), max(1, round(width * factor))]
        mirrored = torch.rand(()) < 0.5
        places = [place(side, self.of.size) for side in scaled]

        def cut(picture: Tensor) -> Tensor:
            picture = picture if scaled == [height, width] else F.resize(picture, scaled, antialias=True)
            (top, y0, y1), (left, x0, x1) = places
            picture = (F.horizontal_flip(picture) if mirrored else picture)[
                :, top : top + y1 - y0, left : left + x1 - x0
            ]
            return picture

        def placed(picture: Tensor) -> Tensor:
            (_, y0, y1), (_, x0, x1) = places
            canvas = picture.new_zeros(len(picture), self.of.size, self.of.size)
            canvas[:, y0:y1, x0:x1] = picture
            return canvas

        views = {"draws": torch.rand(2, self.grid, self.grid)}
        sample = {
            "images": placed(normalised(self.jitter(cut(as_tensor(image))), self.mean, self.std)),
            "boxes": torch.tensor([bound for _, *bounds in places for bound in bounds]),
        }
        if saliency is not None:
            views["saliency"] = placed(cut(torch.from_numpy(saliency)[None]).float() / 255)
        return sample | {"views": views}
