"""Drop-in modules."""

import torch
from torch import Tensor, nn

from ..common.errors import bad_value, integer, number
from .op import prototype_contrast
from .step import pixel_prototype_contrast


def _positive(temperature: float) -> float:
    temperature = number(temperature, "temperature")
    if not temperature > 0:
        raise bad_value("temperature", "be positive", temperature)
    return temperature


class PrototypeContrastLoss(nn.Module):
    """`prototype_contrast` with fixed options.

    Args:
        temperature: divides the cosines, > 0. PPC: 0.1.
        ignore_index: the label of pixels that take no part.
    """

    def __init__(self, temperature: float = 0.1, ignore_index: int = 255):
        super().__init__()
        self.temperature = _positive(temperature)
        self.ignore_index = ignore_index

    def forward(
        self,
        features: Tensor,  # (B, D, H, W)
        labels: Tensor,  # (B, H, W)
        prototypes: Tensor,  # (C, D)
    ) -> Tensor:  # ()
        """See `prototype_contrast`."""
        return prototype_contrast(
            features, labels, prototypes, temperature=self.temperature, ignore_index=self.ignore_index
        )

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"temperature={self.temperature}, ignore_index={self.ignore_index}"


class PixelPrototypeContrastLoss(nn.Module):
    """`pixel_prototype_contrast` with fixed options.

    Args:
        background_score: of every pixel. PPC: 0.2 on SEAM, 0.1 on EPS.
        k: pixels that make a prototype. PPC: 32 on SEAM, 16 on EPS.
        weights: of the three terms.
        temperature: divides the cosines, > 0.
        generator: of the random numbers, on the device of the features; None: the device's default one.
    """

    def __init__(
        self,
        background_score: float,
        k: int,
        weights: tuple[float, float, float] = (0.1, 0.1, 0.1),
        temperature: float = 0.1,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.background_score = number(background_score, "background_score")
        self.k = integer(k, "k", least=1)
        self.weights = weights
        self.temperature = _positive(temperature)
        self.generator = generator

    def forward(
        self,
        cams: Tensor,  # (B, C, H, W)
        other_cams: Tensor,  # (B, C, h, w)
        features: Tensor,  # (B, D, H, W)
        other_features: Tensor,  # (B, D, h, w)
        image_labels: Tensor,  # (B, C - 1)
    ) -> dict[str, Tensor]:
        """See `pixel_prototype_contrast`."""
        return pixel_prototype_contrast(
            cams,
            other_cams,
            features,
            other_features,
            image_labels,
            background_score=self.background_score,
            k=self.k,
            weights=self.weights,
            temperature=self.temperature,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        options = ("background_score", "k", "weights", "temperature")
        return ", ".join(f"{name}={getattr(self, name)}" for name in options)
