"""A fourth method in one file: class activation maps of a small convolutional network (Zhou et al., CVPR 2016).

python -m toco_kernels train --method docs/example_method.py --out run
python -m toco_kernels pseudo-label --run run --out labels
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_kernels import merge_cams
from toco_kernels.training import recipes


class Output(NamedTuple):
    """What the loop looks at; further fields are the method's own."""

    loss: Tensor
    losses: dict[str, Tensor]


class CAM(nn.Module):
    """Features, their mean over the image, a linear classifier. Its weights, put on the features, are the CAMs."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        layers = [nn.Conv2d(3, width, 4, 4), nn.GroupNorm(8, width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor, image_labels: Tensor, *, views: dict, boxes: Tensor, step: int) -> Output:
        """One step: (B, 3, H, W) and (B, C) to a loss. Other views of the photographs are there for who wants them."""
        logits = self.classifier(self.features(images)).mean(dim=(2, 3))
        loss = F.multilabel_soft_margin_loss(logits.float(), image_labels)
        return Output(loss, {"cls": loss})

    @torch.no_grad()
    def cams(self, images: Tensor, image_labels: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1], 0 for absent classes: of images and mirror images, by an operator of the package."""
        maps = self.classifier(self.features(torch.cat([images, images.flip(-1)])))
        return merge_cams([maps], tuple(images.shape[2:]), image_labels)


class Recipe(recipes.Recipe):
    """Settings, each changed by --set NAME=VALUE, and the network. `recipes.Recipe` says what else there is."""

    presets: ClassVar = {
        "shapes": {
            "steps": 200,
            "batch_size": 16,
            "lr": 1e-2,
            "background": 0.4,
            "cam_scales": [1.0],
            "width": 32,
            "augmentation": {"size": 96, "rescale": [1.0, 1.3], "blur": [0.0, 0.0, 0.0], "grey": 0.0},
        }
    }

    def build(self, process_group=None) -> nn.Module:
        """The network, for the foreground classes."""
        return CAM(len(self.classes) - 1, self.settings["width"])
