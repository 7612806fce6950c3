"""PPC: `toco_kernels.methods.PPC` and how it is trained, on VOC on SEAM or EPS, and from nothing on the shapes."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...methods import (
    PPC,
    PPC_EPS,
    PPC_SEAM,
    Optimisation,
    PPCConfig,
    PPCOutput,
)
from ...methods.ppc.config import CONTRAST
from ...methods.ppc.feature_maps import STRIDE
from ...methods.ppc.published import published_step
from ..scaled_view import ScaledCrop, ScaledView
from .configured import ConfiguredRecipe, preset_of, sgd_or_adamw

_OWN = {
    "backbone": "resnet50.tv_in1k",
    "freeze_norms": True,
    "freeze_stem": True,
    "augmentation": asdict(ScaledCrop(PPC_SEAM.crop_size)),
}


class Recipe(ConfiguredRecipe):
    """PPC. `voc` is on SEAM, `voc-eps` on EPS, whose saliency maps are in ROOT/SALImages."""

    configuration = PPCConfig
    presets: ClassVar = {
        "voc": preset_of(PPC_SEAM, _OWN),
        "voc-eps": preset_of(PPC_EPS, _OWN),
        "shapes": preset_of(
            replace(
                PPC_SEAM,
                second_size=64,
                projection=32,
                correlation=(16, 16, 32),
                dropout=0.0,
                contrast_from=30,
                background=0.5,
                cam_scales=(1.0,),
                optimiser="adamw",
                optimisation=Optimisation(
                    80,
                    lr=2e-3,
                    head_factor=1.0,
                    weight_decay=0.05,
                    warmup_steps=20,
                    warmup_ratio=0.01,
                    restart_after_warmup=False,
                ),
            ),
            _OWN,
            backbone="resnet10t",
            backbone_options={"channels": [16, 32, 64, 96], "stem_width": 8},
            pretrained=False,
            freeze_norms=False,
            freeze_stem=False,
            batch_size=16,
            augmentation={"size": 96, "long_side": [96, 125], "jitter": [0.2, 0.2, 0.1, 0.0]},
        ),
    }

    @property
    def saliency(self) -> bool:
        """Where a loss explains saliency maps, as on EPS."""
        return self.config().weights.get("saliency", 0) != 0

    @property
    def unused_parameters(self) -> bool:
        """Where a head is trained by no loss, at first or at all: labels and the targets of `ecr` are constants."""
        config = self.config()
        weighty = {name for name, weight in config.weights.items() if weight != 0}
        by_head = set(CONTRAST), {"cls", "er", "saliency"}, {"min_pooling", "ecr", "saliency"}
        return config.contrast_from > 0 or not all(weighty & losses for losses in by_head)

    def build(self, process_group: dist.ProcessGroup | None = None) -> nn.Module:
        """The module."""
        options = self.options("freeze_norms", "freeze_stem")
        return PPC(self.settings["backbone"], config=self.config(), process_group=process_group, **options)

    def views(self) -> Callable[..., dict]:
        """The published view, and the random numbers that choose pixels for the contrast."""
        config = self.config()
        grid = -(-config.second_size // STRIDE)
        return ScaledView(ScaledCrop(**self.settings["augmentation"]), config.mean, config.std, grid)

    def published_step(self, module: nn.Module, batch: dict, step: int) -> PPCOutput:
        """The published sequence of operations."""
        return published_step(
            module, batch["images"], batch["image_labels"], views=batch["views"], boxes=batch["boxes"], step=step
        )

    def certified_from(self) -> int:
        """The first step with contrast."""
        return self.config().contrast_from

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """SGD without momentum, as published, or AdamW."""
        return sgd_or_adamw(module, self.config())

    def cams(self, module: nn.Module, images: Tensor, image_labels: Tensor) -> dict[str, Tensor]:
        """CAMs at the scales of the settings."""
        return {"cam": module.cams(images, image_labels, scales=tuple(self.settings["cam_scales"]))}
