"""Every setting of AffinityNet in one place: as PPC's second stage sets it, and a small one for tests."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...common.errors import bad_value, integer, number
from ..config import Optimisation, Weights

AFFINITY_NET_LOSSES = ("background", "foreground", "negative")
OPTIMISERS = ("sgd", "adamw")


@dataclass(frozen=True)
class AffinityNetConfig:
    """Everything about AffinityNet but the backbone's name.

    Args:
        weights: of the losses, of pairs that are both background, both the same object, and neither.
        radius: pairs are closer than this, in pixels of the network's grid.
        inner_pairs: whether only pixels begin a pair that have all their neighbours, `radius - 1` pixels from the left,
            the right and the lower border, as published; off: all pairs.
        projections: channels of the three projections, of the backbone's low, middle and top features.
        features: channels whose distance is the affinity.
        beta, walk_steps: of the random walk. Published: 8, and 64 on SEAM and PPC or 256 in the paper's code.
        background_score: of the background, which walks with the seeds.
        background_power: None, or the background's score is (1 - the largest of the seeds) to this power, as in the
            paper's code, where it is 16, and `background_score` is not read.
        optimisation: learning rate, schedule, weight decay.
        optimiser: "sgd", without momentum, as published; or "adamw".
        crop_size, batch_size: of an image in pixels, and of one process, for data loaders.
        mean, std: of the colours, in 0..255; images arrive normalised by them.
    """

    weights: Mapping[str, float] = field(
        default_factory=lambda: {"background": 0.25, "foreground": 0.25, "negative": 0.5}
    )
    radius: int = 5
    inner_pairs: bool = True
    projections: tuple[int, int, int] = (64, 128, 256)
    features: int = 448
    beta: float = 8.0
    walk_steps: int = 64
    background_score: float = 0.27
    background_power: float | None = None
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(10_576, lr=0.01, head_factor=10.0, weight_decay=5e-4, warmup_steps=0)
    )
    optimiser: str = "sgd"
    crop_size: int = 448
    batch_size: int = 8
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self):
        object.__setattr__(self, "weights", Weights(self.weights))
        if set(self.weights) != set(AFFINITY_NET_LOSSES):
            raise bad_value("weights", f"name the losses {AFFINITY_NET_LOSSES}", [*self.weights])
        if self.optimiser not in OPTIMISERS:
            raise bad_value("optimiser", f"be one of {OPTIMISERS}", repr(self.optimiser))
        if len(self.projections) != 3:
            raise bad_value("projections", "be three numbers of channels", self.projections)
        for value in self.projections:
            integer(value, "projections", least=1)
        for name, least in {"radius": 2, "features": 1, "walk_steps": 0}.items():
            integer(getattr(self, name), name, least=least)
        if not 0 < number(self.beta, "beta") < float("inf"):
            raise bad_value("beta", "be > 0 and finite", self.beta)
        if not 0 <= number(self.background_score, "background_score") <= 1:
            raise bad_value("background_score", "be in [0, 1]", self.background_score)
        if self.background_power is not None and not number(self.background_power, "background_power") > 0:
            raise bad_value("background_power", "be None or positive", self.background_power)


AFFINITY_NET = AffinityNetConfig()

# For tests: small images, small heads.
AFFINITY_NET_TINY = AffinityNetConfig(
    radius=3,
    projections=(4, 6, 8),
    features=12,
    walk_steps=8,
    optimisation=Optimisation(200, lr=0.01, head_factor=10.0, weight_decay=5e-4, warmup_steps=0),
    crop_size=64,
    batch_size=2,
)
