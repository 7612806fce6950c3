"""Every setting of a method in one readable place: what ToCo used on VOC and on COCO, and a small one for tests.

Configurations are frozen and hashable: `dataclasses.replace(VOC, num_classes=6, high=0.6)` makes another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..common.errors import bad_type, bad_value, integer
from .checks import (
    check_colours,
    check_flags,
    check_integers,
    check_weights,
    checked_scales,
    integers,
    not_negative,
    positive,
    share,
)

LOSSES = ("cls", "cls_aux", "ptc", "ctc", "seg", "reg")


class Weights(dict):
    """A dictionary that cannot be changed, since stages are shared, and so has a hash."""

    def __hash__(self):
        return hash(frozenset(self.items()))

    def _refuse(self, *args, **kwargs):
        raise TypeError("weights must not be changed: dataclasses.replace makes another Stage")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self):  # else copies are filled item by item
        return Weights, (dict(self),)


@dataclass(frozen=True)
class Stage:
    """What is trained up to and including step `until`; None: to the end.

    Args:
        until: the last step of the stage, counted from 0.
        weights: of the losses `cls`, `cls_aux`, `ptc`, `ctc`, `seg` and `reg`; those not named weigh 0.
        labels_from: which CAM the pseudo labels for `seg` and `reg` are made of, "main" or "aux".
    """

    until: int | None
    weights: Mapping[str, float]
    labels_from: str = "main"

    def __post_init__(self):
        if self.until is not None:
            integer(self.until, "until", least=0)
        check_weights(self.weights, LOSSES)
        object.__setattr__(self, "weights", Weights(self.weights))
        if self.labels_from not in ("main", "aux"):
            raise bad_value("labels_from", "be 'main' or 'aux'", repr(self.labels_from))

    def weight(self, loss: str) -> float:
        """The weight of a loss, 0 if it is not named."""
        return self.weights.get(loss, 0.0)


@dataclass(frozen=True)
class Optimisation:
    """AdamW and its schedule, see `parameter_groups` and `learning_rate_factor`.

    Args:
        steps: of the whole training, where the learning rate reaches 0.
        lr: of the backbone.
        head_factor: how much larger it is for classifiers, projection head and decoder.
        weight_decay: of all parameters alike, norms and biases included, as published.
        betas: of AdamW.
        warmup_steps: the learning rate rises linearly over these …
        warmup_ratio: … from this share of it. (The published argument is named `warmup_lr` and used as a share.)
        power: of the polynomial that the learning rate follows afterwards.
        restart_after_warmup: as published, the polynomial counts from step 0, so the learning rate drops (to 0.932 of
            its value on VOC) right after the warm-up. Off: it counts from the end of the warm-up.
    """

    steps: int
    lr: float = 6e-5
    head_factor: float = 10.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 1500
    warmup_ratio: float = 1e-6
    power: float = 0.9
    restart_after_warmup: bool = True

    def __post_init__(self):
        check_integers(self, steps=1, warmup_steps=0)
        for name in ("lr", "head_factor", "weight_decay", "power"):
            not_negative(getattr(self, name), name)
        share(self.warmup_ratio, "warmup_ratio")
        if not isinstance(self.betas, Sequence) or len(self.betas) != 2:
            raise bad_value("betas", "be two numbers in [0, 1)", self.betas)
        for beta in self.betas:
            share(beta, "betas", below_one=True)
        check_flags(self, "restart_after_warmup")


@dataclass(frozen=True)
class Quirks:
    """What the published code does and may not have meant. All that changes training is on, so that results compare.

    Args:
        boxes_in_pixels: for the patch-token contrast, boxes in pixels are applied to the patch grid as they are: a box
            that begins at pixel 60 blanks a grid of 28. Off: those patches count whose centre is in the box.
        always_count_negatives: the class-token contrast adds log(1 + N) for every image, from a `for … else` whose
            `else` always runs. Off: the term is left out; with two global crops there always is a positive.
        quantise_image: labels are refined along an image rounded down to whole colours 0..255. Off: as it is.
        nan_segmentation: the first published segmentation loss, which is NaN for a batch without background or without
            objects, and makes the sum NaN even where its weight is 0. **Off**, alone of all: nobody can train on it.
    """

    boxes_in_pixels: bool = True
    always_count_negatives: bool = True
    quantise_image: bool = True
    nan_segmentation: bool = False

    def __post_init__(self):
        check_flags(self, *(field.name for field in fields(self)))


@dataclass(frozen=True)
class ToCoConfig:
    """Everything about ToCo but the backbone's name.

    Args:
        num_classes: with the background.
        high, low: thresholds of CAMs: objects are above `high`, background is not above `low`.
        background: the one threshold that CAMs are evaluated with; training does not use it.
        temperature: of the class-token contrast.
        stages: in the order of their `until`; the last one has None.
        optimisation: learning rate, schedule, weight decay.
        crop_size, batch_size: of an image in pixels, and of one process, for data loaders.
        local_crops, local_size: how many crops are cut from uncertain regions, and their side in pixels.
        momentum: of the teacher head.
        cam_scales: sizes at which CAMs are made; 1 is the main pass itself.
        aux_layer: block whose output feeds the auxiliary classifier; negative ones count from the end.
        decoder_width, projection: channels of the decoder; hidden layers, bottleneck and output of the projection head.
        max_classes: at most how many classes of an image are refined, None: all. A GPU allocates for so many.
        energy_weight, sigma_rgb, sigma_xy, scale_factor: of the dense energy, `reg`.
        mean, std: of the colours, in 0..255; images arrive normalised by them. ImageNet's, for every backbone.
        quirks: of the published code.
    """

    num_classes: int = 21
    high: float = 0.7
    low: float = 0.25
    background: float = 0.5
    temperature: float = 0.5
    stages: tuple[Stage, ...] = (Stage(None, dict.fromkeys(LOSSES, 1.0)),)
    optimisation: Optimisation = field(default_factory=lambda: Optimisation(20_000))
    crop_size: int = 448
    batch_size: int = 2
    local_crops: int = 8
    local_size: int = 96
    momentum: float = 0.9
    cam_scales: tuple[float, ...] = (1.0, 0.5, 1.5)
    aux_layer: int = -3
    decoder_width: int = 512
    projection: tuple[int, int, int] = (2048, 256, 1024)
    max_classes: int | None = None
    energy_weight: float = 1e-7
    sigma_rgb: float = 15.0
    sigma_xy: float = 100.0
    scale_factor: float = 0.5
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    quirks: Quirks = field(default_factory=Quirks)

    def __post_init__(self):
        check_shared(self)
        check_integers(self, local_crops=1, local_size=1, decoder_width=1)
        integers(self.projection, "projection", 3)
        if not isinstance(self.aux_layer, int):
            raise bad_type("aux_layer", "be an integer", repr(self.aux_layer))
        if self.max_classes is not None:
            integer(self.max_classes, "max_classes", least=1)
        for name in ("high", "low", "background", "momentum"):
            share(getattr(self, name), name)
        for name in ("temperature", "sigma_rgb", "sigma_xy", "scale_factor"):
            positive(getattr(self, name), name)
        not_negative(self.energy_weight, "energy_weight")
        checked_scales(self.cam_scales, "cam_scales")
        if not isinstance(self.quirks, Quirks):
            raise bad_type("quirks", "be Quirks", type(self.quirks).__name__)
        if not isinstance(self.stages, Sequence) or not all(isinstance(stage, Stage) for stage in self.stages):
            raise bad_type("stages", "be Stages", self.stages)
        ends = [stage.until for stage in self.stages]
        if not ends or ends[-1] is not None or None in ends[:-1] or sorted(ends[:-1]) != ends[:-1]:
            raise bad_value("stages", "be ordered by `until`, and the last one end with None", ends)

    def stage(self, step: int) -> Stage:
        """The stage that a step, counted from 0, belongs to."""
        return next(stage for stage in self.stages if stage.until is None or step <= stage.until)


def check_shared(config: Any) -> None:
    """The settings that the configuration of every method has."""
    check_integers(config, num_classes=2, crop_size=1, batch_size=1)
    check_colours(config)
    if not isinstance(config.optimisation, Optimisation):
        raise bad_type("optimisation", "be an Optimisation", type(config.optimisation).__name__)


_CONTRAST = {"cls": 1.0, "cls_aux": 1.0, "ptc": 0.2, "ctc": 0.5}
_SEGMENTATION = {"seg": 0.1, "reg": 0.05}
_CLASSES = {"cls": 1.0, "cls_aux": 1.0}

VOC = ToCoConfig(
    num_classes=21,
    high=0.7,
    low=0.25,
    background=0.5,
    temperature=0.5,
    stages=(Stage(2000, _CONTRAST), Stage(None, _CONTRAST | _SEGMENTATION)),
    optimisation=Optimisation(20_000),
)

COCO = ToCoConfig(
    num_classes=81,
    high=0.65,
    low=0.25,
    background=0.45,
    temperature=1.0,
    stages=(
        Stage(8000, _CLASSES, labels_from="aux"),
        Stage(12_000, _CLASSES | _SEGMENTATION, labels_from="aux"),
        Stage(None, _CONTRAST | _SEGMENTATION),
    ),
    optimisation=Optimisation(80_000),
)

# For tests and first steps on a CPU: small images, small heads, all losses from the first step on.
TINY = ToCoConfig(
    num_classes=6,
    stages=(Stage(None, _CONTRAST | _SEGMENTATION),),
    optimisation=Optimisation(200, lr=1e-3, head_factor=1.0, warmup_steps=20),
    crop_size=64,
    batch_size=2,
    local_crops=3,
    local_size=24,
    decoder_width=32,
    projection=(64, 16, 32),
)

CONFIGS = {"voc": VOC, "coco": COCO, "tiny": TINY}
