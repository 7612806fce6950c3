"""A method small enough for tests: a recipe in one file, as `--method FILE` takes it."""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_kernels import merge_cams
from toco_kernels.training import recipes

PRESET = {
    "steps": 6,
    "batch_size": 4,
    "lr": 1e-2,
    "background": 0.4,
    "cam_scales": [1.0],
    "dropout": 0.1,
    "augmentation": {"size": 32, "rescale": [0.3, 0.5], "blur": [0.0, 0.0, 0.0]},
}


class Output(NamedTuple):
    loss: Tensor
    losses: dict[str, Tensor]


class Tiny(nn.Module):
    def __init__(self, classes: int, dropout: float):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GroupNorm(4, 16), nn.ReLU(), nn.Dropout(dropout))
        self.register_buffer("steps", torch.zeros(()))
        self.classifier = nn.Conv2d(16, classes - 1, 1)
        self.decoder = nn.Conv2d(16, classes, 1)

    def forward(self, images, image_labels, *, views, boxes, step):
        self.steps += 1
        features = self.features(images)
        cls = F.multilabel_soft_margin_loss(self.classifier(features).amax((2, 3)), image_labels)
        other = self.features(views["second_global"]).mean((2, 3))
        agree = (features.mean((2, 3)) - other).square().mean()
        return Output(cls + agree + 0 * self.decoder(features).mean(), {"cls": cls, "agree": agree})

    def cams(self, images, image_labels):
        maps = torch.cat([self.classifier(self.features(x)) for x in (images, images.flip(-1))])
        return merge_cams([maps], tuple(images.shape[2:]), image_labels)


class Recipe(recipes.Recipe):
    presets: ClassVar = {"shapes": PRESET, "voc": PRESET | {"steps": 3}}

    def build(self, process_group=None):
        return Tiny(len(self.classes), self.settings["dropout"])

    def predict(self, module, images, size, scales=(1.0,), flip=None, merge="max"):
        return F.interpolate(module.decoder(module.features(images)), size=size, mode="bilinear")
