"""Small TKP-PCL models and batches, for its tests."""

from dataclasses import replace

import torch
from toco_inputs import VIT, tiny_batch

from toco_kernels.methods import TKPPCL, TKPPCL_VOC

TINY = replace(TKPPCL_VOC, num_classes=6, threshold=0.8, trained_blocks=None, frozen_steps=0, label_size=None)


def tiny_tkp_pcl(config=TINY, name="vit_tiny_patch16_224", options=None, *, sharp=8.0, **arguments):
    """A ViT of 4 blocks with patches of 8 pixels, the weights of seed 0, and patches that are sure of some class."""
    torch.manual_seed(0)
    model = TKPPCL(name, config=config, backbone_options={**VIT, **(options or {})}, **arguments)
    with torch.no_grad():
        model.classifier.weight.mul_(sharp)
    return model


def batch_of(batch=2, size=(64, 64), **options):
    """What `TKPPCL.forward` takes."""
    given = tiny_batch(batch, size, **options)
    return {name: given[name] for name in ("images", "image_labels", "step")}
