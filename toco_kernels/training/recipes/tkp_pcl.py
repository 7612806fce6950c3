"""TKP-PCL: `toco_kernels.methods.TKPPCL` and how it is trained, on VOC, on COCO, and from nothing on the shapes.

Its authors published no code. The presets `voc` and `coco` are an unconfirmed account of their group's training (384
pixels, 16 images, 50 epochs, Adam) and what is known of ViT-PCM's; `shapes` is ours, chosen on the validation split.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...methods import TKPPCL, TKPPCL_COCO, TKPPCL_VOC, Optimisation, TKPPCLConfig, TKPPCLOutput
from ...methods.tkp_pcl.published import published_step
from ..views import Augmentation, Views, as_tensor
from .configured import ConfiguredRecipe, preset_of

_OWN = {
    "backbone": "vit_base_patch16_384.orig_in21k_ft_in1k",
    "train_positions": False,
    "augmentation": {"size": TKPPCL_VOC.crop_size, "rescale": None, "grey": 0.0, "blur": [0.0, 0.0, 0.0]},
    "cam_flip": False,
}


class Recipe(ConfiguredRecipe):
    """TKP-PCL. Its pseudo labels then train a segmenter of one's own choice: there is none here."""

    configuration = TKPPCLConfig
    presets: ClassVar = {
        "voc": preset_of(TKPPCL_VOC, _OWN),
        "coco": preset_of(TKPPCL_COCO, _OWN),
        "shapes": preset_of(
            replace(
                TKPPCL_VOC,
                mean_steps=30,
                trained_blocks=None,
                frozen_steps=0,
                label_size=None,
                dropout=0.0,
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
            backbone="vit_tiny_patch16_224",
            backbone_options={"embed_dim": 96, "depth": 2, "num_heads": 3, "patch_size": 8, "img_size": 96},
            pretrained=False,
            train_positions=True,
            batch_size=16,
            augmentation={
                "size": 96,
                "rescale": [1.0, 1.0],
                "jitter": [0.0, 0.0, 0.0, 0.0],
                "grey": 0.0,
                "blur": [0.0, 0.0, 0.0],
            },
        ),
    }

    @property
    def unused_parameters(self) -> bool:
        """While the backbone is frozen."""
        return self.settings["config"]["frozen_steps"] > 0

    def build(self, process_group: dist.ProcessGroup | None = None) -> nn.Module:
        """The module."""
        options = self.options("train_positions")
        return TKPPCL(self.settings["backbone"], config=self.config(), process_group=process_group, **options)

    def views(self) -> Callable[[np.ndarray], dict]:
        """One crop of a photograph: nothing else is seen of it."""
        make = Views(Augmentation(**self.settings["augmentation"]), self.mean, self.std)
        return lambda image: {"images": make.first(make.crop(as_tensor(image))[0])}

    def step(self, module: nn.Module, batch: dict, step: int) -> TKPPCLOutput:
        """One forward pass."""
        return module(batch["images"], batch["image_labels"], step=step)

    def published_step(self, module: nn.Module, batch: dict, step: int) -> TKPPCLOutput:
        """The same, formula by formula: there is no published code."""
        return published_step(module, batch["images"], batch["image_labels"], step=step)

    def certified_from(self) -> int:
        """The first step that trains the backbone."""
        return self.settings["config"]["frozen_steps"]

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """AdamW, which is Adam where weights do not decay."""
        optimisation = self.config().optimisation
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(
            trained, lr=optimisation.lr, betas=optimisation.betas, weight_decay=optimisation.weight_decay
        )

    def lr_factor(self, step: int) -> float:
        """The schedule, faster while the backbone is frozen."""
        return self.config().learning_rate_factor(step)

    def cams(self, module: nn.Module, images: Tensor, image_labels: Tensor) -> dict[str, Tensor]:
        """Class maps with a background of their own, at the size of the images; the method has no CAMs."""
        scales, flip = tuple(self.settings["cam_scales"]), self.settings["cam_flip"]
        return {"cam": module.cams(images, image_labels, scales=scales, flip=flip)}
