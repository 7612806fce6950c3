"""Small PPC models and batches, for its tests."""

from dataclasses import replace

import pytest
import torch

from toco_kernels.cli.train import assignment, changed
from toco_kernels.methods import PPC, PPC_EPS, PPC_TINY

pytest.importorskip("timm")
# Frozen norms that begin at zero would leave nothing of a block.
RESNET = {"channels": (8, 16, 24, 32), "stem_width": 8, "zero_init_last": False}
TINY_EPS = replace(
    PPC_TINY, variant="eps", weights=PPC_EPS.weights, background_score=0.1, prototype_share=16, dropout=0.0
)
CONFIGS = {"seam": PPC_TINY, "eps": TINY_EPS}


def tiny_ppc(config=PPC_TINY, name="resnet10t", options=None, **arguments):
    """A ResNet of four blocks, and the weights of seed 0, as if they had been loaded."""
    torch.manual_seed(0)
    model = PPC(name, config=config, backbone_options=RESNET if options is None else options, **arguments)
    model.load_state_dict(model.state_dict())  # else every training would warn
    return model


def tiny_batch(batch=3, size=(64, 64), classes=5, *, seed=1, grid=(4, 4)):
    """What `PPC.forward` takes: smooth images, one to three classes each, saliency maps, random numbers."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 6, 6, generator=generator) * 1.5
    labels = torch.zeros(batch, classes)
    for i, row in enumerate(labels):
        row[torch.randperm(classes, generator=generator)[: 1 + i % 3]] = 1
    views = {
        "draws": torch.rand(batch, 2, *grid, generator=generator),
        "saliency": torch.rand(batch, 1, size[0] // 2, size[1] // 3, generator=generator),
    }
    images = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    return {"images": images, "image_labels": labels, "views": views, "step": 0}


# What its recipe takes

SMALL = (
    "backbone=resnet10t",
    'backbone_options={"channels": [8, 16, 24, 32], "stem_width": 8, "zero_init_last": false}',
    "pretrained=false",
    "steps=4",
    "batch_size=4",
    "augmentation.size=64",
    "augmentation.long_side=[48, 80]",
    "config.second_size=32",
    "config.projection=16",
    "config.correlation=[4, 8, 12]",
    "cam_scales=[1.0]",
)


def small_settings(*more, preset="shapes"):
    """Of the recipe."""
    from toco_kernels.training.recipes import find

    values = find("ppc").preset(preset)
    for text in (*SMALL, *more):
        values = changed(values, *assignment(text))
    return values


def small_job(run, *more, preset="shapes", **options):
    """A training of seconds."""
    from toco_kernels.training.trainer import Job

    options = {"log_every": 1, "device": "cpu", "evaluate_images": (2, 4)} | options
    return Job(run, "ppc", small_settings(*more, preset=preset), **options)
