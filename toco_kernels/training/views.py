"""From a photograph to the views that a training step wants, by torchvision's transforms.

The published views, of one photograph: the *first global* view is a crop of the rescaled photograph, which is what the
network trains on; the *second global* one is a random part of the photograph; the *local source*, from which the step
cuts its small crops, shows what the first view shows, with colours of its own. Flips, jitter and blur as in DINO.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class Augmentation:
    """How views are made; the defaults are ToCo's and DINO's.

    Args:
        size: side of a view in pixels.
        rescale: the photograph is resized by a random factor between these two; None: so that it fills a view.
        jitter: of brightness, contrast, saturation and hue.
        jitter_probability, grey: how often colours are jittered, and how often they are removed.
        blur: how often the first, the second and the local view are blurred.
        solarise: how often the second view is solarised.
        part: the smallest and largest share of the photograph that the second view shows.
        shared_flip: whether first view and local source are mirrored together. Published: no, so that in half of the
            samples the flags of small crops describe mirrored positions, and boxes of padded photographs are wrong.
    """

    size: int
    rescale: tuple[float, float] | None = (0.5, 2.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    grey: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    solarise: float = 0.2
    part: tuple[float, float] = (0.4, 1.0)
    shared_flip: bool = False


@contextmanager
def keyed(*key: int) -> Iterator[None]:
    """Torch's random numbers on the CPU depend on `key` alone inside, and go on as if nothing happened afterwards."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed_of(*key))  # not torch.manual_seed, which remembers each call for CUDA
    try:
        yield
    finally:
        torch.set_rng_state(before)


def seed_of(*key: int) -> int:
    """A seed for each key: (seed, epoch, sample) or the like."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class Views:
    """The views of a photograph, with random numbers from torch's global generator.

    Args:
        augmentation: how they are made.
        mean, std: of the colours in 0..255, to normalise by.
    """

    def __init__(self, augmentation: Augmentation, mean: tuple[float, ...], std: tuple[float, ...]):
        self.augmentation = a = augmentation
        self.mean, self.std = mean, std
        odd = max(3, a.size // 20 * 2 + 1)  # DINO's kernel, a tenth of the side

        def finish(blur: float, solarise: float = 0.0) -> v2.Compose:
            steps = []
            if any(a.jitter):
                steps.append(v2.RandomApply([v2.ColorJitter(*a.jitter)], p=a.jitter_probability))
            if a.grey:
                steps.append(v2.RandomGrayscale(p=a.grey))
            if blur:
                steps.append(v2.RandomApply([v2.GaussianBlur(odd, sigma=(0.1, 2.0))], p=blur))
            if solarise:
                steps.append(v2.RandomSolarize(128, p=solarise))
            return v2.Compose([*steps, self.normalise])

        self.first, self.local = finish(a.blur[0]), finish(a.blur[2])
        self.second = v2.Compose(
            [
                v2.RandomResizedCrop(a.size, scale=a.part, antialias=True),
                v2.RandomHorizontalFlip(),
                finish(a.blur[1], a.solarise),
            ]
        )

    def __call__(self, image: np.ndarray) -> dict:  # (H, W, 3) uint8
        """`images`, `boxes`, and `views` with `second_global` and `local_source`, of one photograph."""
        photograph = as_tensor(image)
        crop, box = self.crop(photograph)
        mirrored, source_mirrored = torch.rand(2) < 0.5
        if self.augmentation.shared_flip:
            source_mirrored = mirrored
            if mirrored:
                box = torch.stack([box[0], box[1], crop.shape[-1] - box[3], crop.shape[-1] - box[2]])
        return {
            "images": self.first(F.horizontal_flip(crop) if mirrored else crop),
            "boxes": box,
            "views": {
                "second_global": self.second(photograph),
                "local_source": self.local(F.horizontal_flip(crop) if source_mirrored else crop),
            },
        }

    def crop(self, photograph: Tensor) -> tuple[Tensor, Tensor]:  # (3, H, W) -> (3, size, size), (4,)
        """A random crop of the rescaled photograph, mirrored half of the time, and where in it the photograph is: y0,
        y1, x0, x1. Around it is the mean colour."""
        size, (height, width) = self.augmentation.size, photograph.shape[1:]
        if self.augmentation.rescale is None:
            factor = size / min(height, width)
        else:
            low, high = self.augmentation.rescale
            factor = low + (high - low) * torch.rand(()).item()
        if factor != 1:
            scaled = [max(1, round(height * factor)), max(1, round(width * factor))]
            photograph = F.resize(photograph, scaled, antialias=True)
        if torch.rand(()) < 0.5:
            photograph = F.horizontal_flip(photograph)
        (top, y0, y1), (left, x0, x1) = (place(side, size) for side in photograph.shape[1:])
        crop = torch.tensor(self.mean).round().to(torch.uint8)[:, None, None].repeat(1, size, size)
        crop[:, y0:y1, x0:x1] = photograph[:, top : top + y1 - y0, left : left + x1 - x0]
        return crop, torch.tensor([y0, y1, x0, x1])

    def normalise(self, photograph: Tensor) -> Tensor:  # (3, H, W) in 0..255 -> float32
        """Colours with the mean 0 and the deviation 1."""
        return normalised(photograph, self.mean, self.std)


def place(side: int, size: int) -> tuple[int, int, int]:
    """Where the crop begins in the photograph, and where the photograph begins and ends in the crop, along one axis."""
    spare = side - size
    offset = int(torch.randint(abs(spare) + 1, ()))
    return (offset, 0, size) if spare >= 0 else (0, offset, offset + side)


def as_tensor(image: np.ndarray) -> Tensor:  # (H, W, 3) -> (3, H, W), uint8
    """A photograph as torchvision wants it."""
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def normalised(photograph: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:  # (…, 3, H, W)
    """Colours in 0..255 as the network wants them."""
    mean, std = (torch.tensor(values, dtype=torch.float32, device=photograph.device) for values in (mean, std))
    return (photograph.float() - mean[:, None, None]) / std[:, None, None]
