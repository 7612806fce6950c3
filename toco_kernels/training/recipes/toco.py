"""ToCo: `toco_kernels.methods.ToCo` and how it is trained, on VOC, on COCO, and from nothing on the shapes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...methods import (
    COCO,
    VOC,
    Optimisation,
    Quirks,
    Stage,
    ToCo,
    ToCoConfig,
    ToCoOutput,
    parameter_groups,
)
from ...methods.published import published_step
from ..views import Augmentation, Views
from .configured import ConfiguredRecipe, preset_of

_PLAIN = {"cls": 1.0, "cls_aux": 1.0}
_ALL = _PLAIN | {"ptc": 0.2, "ctc": 0.5, "seg": 0.1, "reg": 0.05}
_OWN = {
    "backbone": "deit_base_patch16_224.fb_in1k",
    "train_positions": False,
    "energy_kernel": "auto",
    "skip_unweighted": False,
}


class Recipe(ConfiguredRecipe):
    """ToCo. VOC: 2 processes with 2 images each; COCO: 4 with 2 each."""

    configuration = ToCoConfig
    presets: ClassVar = {
        "voc": preset_of(VOC, _OWN, batch_size=4),
        "coco": preset_of(COCO, _OWN, batch_size=8),
        "shapes": preset_of(
            replace(
                VOC,
                high=0.7,
                low=0.4,
                background=0.6,
                local_crops=4,
                local_size=32,
                decoder_width=64,
                projection=(256, 64, 128),
                cam_scales=(1.0,),
                stages=(Stage(19, _PLAIN), Stage(None, _ALL)),
                optimisation=Optimisation(
                    60,
                    lr=1e-3,
                    head_factor=1.0,
                    weight_decay=0.05,
                    warmup_steps=20,
                    warmup_ratio=0.01,
                    restart_after_warmup=False,
                ),
            ),
            _OWN,
            backbone="vit_tiny_patch16_224",
            backbone_options={"embed_dim": 128, "depth": 6, "num_heads": 4, "patch_size": 8, "img_size": 96},
            pretrained=False,
            train_positions=True,
            skip_unweighted=True,
            batch_size=16,
            augmentation={
                "size": 96,
                "rescale": [1.0, 1.3],
                "jitter": [0.2, 0.2, 0.1, 0.0],
                "grey": 0.0,
                "blur": [0.0, 0.0, 0.0],
                "solarise": 0.0,
                "shared_flip": True,
            },
        ),
    }

    @property
    def unused_parameters(self) -> bool:
        """Where losses without weight are left out."""
        return self.settings["skip_unweighted"]

    def config(self) -> ToCoConfig:
        """The method's configuration."""
        own = self.settings["config"]
        return super().config(stages=tuple(Stage(**stage) for stage in own["stages"]), quirks=Quirks(**own["quirks"]))

    def build(self, process_group: dist.ProcessGroup | None = None) -> nn.Module:
        """The module."""
        options = self.options("train_positions", "energy_kernel", "skip_unweighted")
        return ToCo(self.settings["backbone"], config=self.config(), process_group=process_group, **options)

    def views(self) -> Callable[[np.ndarray], dict]:
        """The published views, and the random numbers that choose the local crops."""
        config = self.config()
        make = Views(Augmentation(**self.settings["augmentation"]), config.mean, config.std)

        def views(image: np.ndarray) -> dict:
            sample = make(image)
            sample["views"]["draws"] = torch.rand(config.local_crops, dtype=torch.float64)
            return sample

        return views

    def published_step(self, module: nn.Module, batch: dict, step: int) -> ToCoOutput:
        """The published sequence of operations."""
        return published_step(
            module, batch["images"], batch["image_labels"], views=batch["views"], boxes=batch["boxes"], step=step
        )

    def certified_from(self) -> int:
        """The beginning of the last stage."""
        ends = [stage.until for stage in self.config().stages[:-1]]
        return ends[-1] + 1 if ends else 0

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """AdamW with the published groups."""
        optimisation = self.config().optimisation
        return torch.optim.AdamW(parameter_groups(module, optimisation), betas=optimisation.betas)

    def cams(self, module: nn.Module, images: Tensor, image_labels: Tensor) -> dict[str, Tensor]:
        """Main and auxiliary CAMs, at the scales of the settings."""
        cam, aux = module.cams(images, image_labels, scales=tuple(self.settings["cam_scales"]), aux=True)
        return {"cam": cam, "aux_cam": aux}

    def predict(
        self,
        module: nn.Module,
        images: Tensor,
        size: tuple[int, int],
        scales: Sequence[float] = (1.0,),
        flip: str | None = None,
        merge: str = "max",
    ) -> Tensor:
        """Class logits of the decoder."""
        return module.predict(images, scales=scales, flip=flip, merge=merge, size=size)
