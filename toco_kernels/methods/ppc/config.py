"""Every setting of PPC in one place: what was published on SEAM and on EPS, and a small one for tests."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...common.errors import bad_value, number
from ..checks import (
    check_flags,
    check_integers,
    check_weights,
    checked_scales,
    choice,
    integers,
    positive,
    share,
)
from ..config import Optimisation, Weights, check_shared

CONTRAST = ("cross_prototype", "cross_cam", "intra")
PPC_LOSSES = ("cls", "min_pooling", "saliency", "er", "ecr", *CONTRAST)
VARIANTS = ("seam", "eps")
OPTIMISERS = ("sgd", "adamw")


@dataclass(frozen=True)
class PPCConfig:
    """Everything about PPC but the backbone's name.

    Args:
        variant: what PPC is built on. "seam": CAMs are compared at the size of the images. "eps": at their own, and
            saliency maps are explained.
        num_classes: with the background, which is class 0.
        weights: of the losses; those not named, or of 0, are not computed. All of PPC_LOSSES but `saliency` for SEAM.
        background_score: of every pixel, where labels for the contrast are made.
        background: the one threshold that CAMs are evaluated with; training does not use it.
        prototype_share: one pixel of so many of the second view makes a prototype, of all pixels of the batch.
        temperature: divides the cosines of the contrast.
        contrast_from: the first step, counted from 0, with contrast. Published: 0, from weights of ImageNet.
        second_size: the side in pixels that the second view is resized to.
        ecr_share: the share of pixels and classes that ECR counts.
        saliency_threshold, saliency_mix: of `saliency_loss`.
        dropout: of whole channels of the features, before both heads.
        projection: channels that are contrasted.
        correlation: channels of the two branches of the pixel correlation, and of what its cosines are taken of.
        published_prototypes: whether prototypes are made of pixels that `torch.topk` takes of equal ones, and negative
            scores weigh too, as published: a class that no pixel shows gets the mean of any pixels. Off: the lowest
            pixels, and such a class has no direction.
        optimisation: learning rate, schedule, weight decay.
        optimiser: "sgd", without momentum, as published; or "adamw".
        crop_size, batch_size: of an image in pixels, and of one process, for data loaders.
        cam_scales: of the passes when CAMs are made.
        mean, std: of the colours, in 0..255; images arrive normalised by them.
    """

    variant: str = "seam"
    num_classes: int = 21
    weights: Mapping[str, float] = field(default_factory=lambda: _SEAM)
    background_score: float = 0.2
    background: float = 0.26
    prototype_share: int = 8
    temperature: float = 0.1
    contrast_from: int = 0
    second_size: int = 128
    ecr_share: float = 0.2
    saliency_threshold: float = 0.4
    saliency_mix: float = 0.5
    dropout: float = 0.5
    projection: int = 128
    correlation: tuple[int, int, int] = (64, 128, 192)
    published_prototypes: bool = False
    optimisation: Optimisation = field(default_factory=lambda: _sgd(10_576))
    optimiser: str = "sgd"
    crop_size: int = 448
    batch_size: int = 8
    cam_scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self):
        check_weights(self.weights, PPC_LOSSES)
        object.__setattr__(self, "weights", Weights(self.weights))
        choice(self.variant, "variant", VARIANTS)
        choice(self.optimiser, "optimiser", OPTIMISERS)
        check_shared(self)
        check_integers(self, prototype_share=1, contrast_from=0, second_size=1, projection=1)
        integers(self.correlation, "correlation", 3)
        positive(self.temperature, "temperature")
        for name in ("background_score", "background", "saliency_threshold", "saliency_mix"):
            share(getattr(self, name), name)
        if not 0 < number(self.ecr_share, "ecr_share") <= 1:
            raise bad_value("ecr_share", "be in (0, 1]", self.ecr_share)
        share(self.dropout, "dropout", below_one=True)
        check_flags(self, "published_prototypes")
        checked_scales(self.cam_scales, "cam_scales")

    def weight(self, loss: str, step: int) -> float:
        """The weight of a loss at a step, 0 if it is not named."""
        late = loss in CONTRAST and step < self.contrast_from
        return 0.0 if late else self.weights.get(loss, 0.0)


def _sgd(steps: int) -> Optimisation:
    return Optimisation(steps, lr=0.01, head_factor=10.0, weight_decay=5e-4, warmup_steps=0)


_SEAM = Weights({"cls": 1.0, "min_pooling": 1.0, "er": 1.0, "ecr": 1.0} | dict.fromkeys(CONTRAST, 0.1))

PPC_SEAM = PPCConfig()

PPC_EPS = PPCConfig(
    variant="eps",
    weights=_SEAM | {"saliency": 1.0},
    background_score=0.1,
    background=0.22,
    prototype_share=16,
    dropout=0.0,
    optimisation=_sgd(19_830),
)

# For tests: small images, small heads.
PPC_TINY = PPCConfig(
    num_classes=6,
    second_size=32,
    projection=16,
    correlation=(4, 8, 12),
    optimisation=_sgd(200),
    crop_size=64,
    batch_size=2,
)
