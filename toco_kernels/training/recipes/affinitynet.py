"""AffinityNet: `toco_kernels.methods.AffinityNet`, the second stage. It learns from what another method found, and
refines it: `train --method affinitynet --seeds DIR`, where DIR is what `pseudo-label --keep-maps` wrote.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ...common.errors import bad_value
from ...methods import (
    AFFINITY_NET,
    AffinityNet,
    AffinityNetConfig,
    AffinityNetOutput,
    Optimisation,
    with_background,
)
from ...methods.affinity_net.published import published_step
from ...methods.ppc.feature_maps import STRIDE
from ..labelled_view import LabelledCrop, LabelledView
from .configured import ConfiguredRecipe, preset_of, sgd_or_adamw

_OWN = {
    "backbone": "resnet50.tv_in1k",
    "freeze_norms": True,
    "freeze_stem": True,
    "augmentation": asdict(LabelledCrop(AFFINITY_NET.crop_size)),
    "seed_background": 0.26,  # of the seeds, where they are measured for comparison
}


class Recipe(ConfiguredRecipe):
    """AffinityNet. `voc` as PPC sets it."""

    seeds = True
    configuration = AffinityNetConfig
    presets: ClassVar = {
        "voc": preset_of(AFFINITY_NET, _OWN),
        "shapes": preset_of(
            replace(
                AFFINITY_NET,
                inner_pairs=False,
                projections=(16, 16, 16),
                features=48,
                walk_steps=64,
                background_score=0.4,
                optimiser="adamw",
                optimisation=Optimisation(
                    100,
                    lr=2e-3,
                    head_factor=1.0,
                    weight_decay=0.05,
                    warmup_steps=10,
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
            seed_background=0.5,
            augmentation={"size": 128, "scale": 2.0, "jitter": [0.2, 0.2, 0.1, 0.0]},
        ),
    }

    def build(self, process_group: dist.ProcessGroup | None = None) -> nn.Module:
        """The module."""
        if [*self.settings["cam_scales"]] != [1.0]:
            raise bad_value("cam_scales", "be [1.0]: affinities are those of one scale", self.settings["cam_scales"])
        options = self.options("freeze_norms", "freeze_stem")
        return AffinityNet(self.settings["backbone"], config=self.config(), process_group=process_group, **options)

    def views(self) -> Callable[..., dict]:
        """A crop of the photograph, and of its label."""
        config = self.config()
        return LabelledView(LabelledCrop(**self.settings["augmentation"]), config.mean, config.std, STRIDE)

    def published_step(self, module: nn.Module, batch: dict, step: int) -> AffinityNetOutput:
        """The published sequence of operations."""
        return published_step(module, batch["images"], views=batch["views"])

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """SGD without momentum, as published, or AdamW."""
        return sgd_or_adamw(module, self.config())

    def cams(
        self,
        module: AffinityNet,
        images: Tensor,  # (B, 3, H, W)
        image_labels: Tensor,  # (B, C)
        seeds: Tensor,  # (B, C, h, w), or (B, C + 1, h, w) with a background of their own
    ) -> dict[str, Tensor]:  # (B, C + 1, h, w) each
        """`cam`, the maps after the walk, and `seed`, those before it with the background to measure by."""
        own = seeds.shape[1] == len(self.classes)
        config, scale = module.config, self.settings["augmentation"]["scale"]
        start = seeds
        if not own:
            start = with_background(seeds, background=config.background_score, power=config.background_power)
        size = [max(1, round(scale * side)) for side in images.shape[2:]]
        shown = F.pad((image_labels != 0).any(dim=0), (1, 0), value=True)  # others would walk in vain
        walked = torch.zeros_like(start)
        maps = module.walk(_resized(images, size), _resized(start[:, shown], size))
        walked[:, shown] = _resized(maps, start.shape[2:])
        before = seeds if own else with_background(seeds, background=self.settings["seed_background"])
        return {"cam": walked, "seed": before}


def _resized(maps: Tensor, size: torch.Size | list[int]) -> Tensor:
    """Bilinear, where need be."""
    if [*maps.shape[2:]] == [*size]:
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
