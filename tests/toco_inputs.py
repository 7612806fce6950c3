"""Small ToCo models and batches, for its tests."""

import copy
from dataclasses import replace

import pytest
import torch

from toco_kernels.methods import TINY, ToCo

pytest.importorskip("timm")
VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}


def tiny_toco(config=TINY, name="vit_tiny_patch16_224", options=None, **arguments):
    """A ViT of 4 blocks with patches of 8 pixels, and the weights of seed 0."""
    torch.manual_seed(0)
    return ToCo(name, config=config, backbone_options={**VIT, **(options or {})}, **arguments)


def tiny_batch(batch=2, size=(64, 64), classes=5, *, given_crops=False, seed=1, crop=24):
    """What `ToCo.forward` takes: smooth images, one to three classes each, boxes."""
    generator = torch.Generator().manual_seed(seed)

    def images(*shape):
        coarse = torch.randn(batch, 3, 6, 6, generator=generator) * 1.5
        return torch.nn.functional.interpolate(coarse, shape or size, mode="bicubic")

    labels = torch.zeros(batch, classes)
    for i, row in enumerate(labels):
        row[torch.randperm(classes, generator=generator)[: 1 + i % 3]] = 1
    views = {"second_global": images()}
    if given_crops:
        views["local_crops"] = torch.stack([images(crop, crop) for _ in range(3)])
        views["flags"] = torch.randint(2, (batch, 3), generator=generator).float()
    else:
        views["local_source"] = images()
        views["draws"] = torch.rand(batch, 3, generator=generator, dtype=torch.float64)
    height, width = size
    boxes = torch.tensor([[height // 16, height - 3, 0, width], [0, height, width // 12, width]]).repeat(batch, 1)
    return {"images": images(), "image_labels": labels, "views": views, "boxes": boxes[:batch], "step": 0}


def sharper(model):
    """The same model with larger classifiers, whose CAMs have objects, background and doubt."""
    with torch.no_grad():
        for classifier in (model.classifier, model.aux_classifier):
            classifier.weight.mul_(20)
    return model


def with_stage(config, **changes):
    return replace(config, stages=(replace(config.stages[-1], **changes),))


def gradients(model, loss, *, again=False):
    """Of every parameter that is trained; zeros where the loss does not depend on it."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(
        loss, [*trained.values()], retain_graph=again, allow_unused=True, materialize_grads=True
    )
    return dict(zip(trained, grads, strict=True))


def twins(model):
    return model, copy.deepcopy(model)
