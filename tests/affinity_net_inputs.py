"""Small AffinityNets and batches, for their tests."""

import pytest
import torch
from ppc_inputs import RESNET

from toco_kernels.cli.train import assignment, changed
from toco_kernels.methods import AFFINITY_NET_TINY, AffinityNet

pytest.importorskip("timm")


def tiny_net(config=AFFINITY_NET_TINY, **arguments):
    """A ResNet of four blocks, and the weights of seed 0."""
    torch.manual_seed(0)
    return AffinityNet("resnet10t", config=config, backbone_options=RESNET, **arguments)


def tiny_batch(batch=2, size=(64, 72), classes=3, *, seed=1):
    """What `AffinityNet.forward` takes: smooth images, labels in blocks, some of them open."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 6, 6, generator=generator) * 1.5
    labels = torch.randint(0, classes + 1, (batch, 1, 3, 4), generator=generator).float()
    labels = torch.nn.functional.interpolate(labels, (size[0] // 8, size[1] // 8))[:, 0].long()
    images = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    return {"images": images, "views": {"labels": labels.masked_fill(labels == classes, 255)}}


# What its recipe takes

SMALL = (
    "backbone=resnet10t",
    'backbone_options={"channels": [8, 16, 24, 32], "stem_width": 8, "zero_init_last": false}',
    "pretrained=false",
    "steps=4",
    "batch_size=4",
    "augmentation.size=48",
    "augmentation.scale=2.0",
    "config.radius=3",
    "config.projections=[4, 6, 8]",
    "config.features=12",
    "config.walk_steps=8",
)


def small_job(run, seeds, *more, preset="shapes", **options):
    """A training of seconds."""
    from toco_kernels.training.recipes import find
    from toco_kernels.training.trainer import Job

    values = find("affinitynet").preset(preset)
    for text in (*SMALL, *more):
        values = changed(values, *assignment(text))
    options = {"log_every": 1, "device": "cpu", "evaluate_images": (2, 4)} | options
    return Job(run, "affinitynet", values, seeds=seeds, **options)
