"""Patch-token contrast, forward and backward, by the published code and by ours.

As for class tokens, the network has random weights: both ways get the same from the same tokens of real photographs,
and what each costs is shown, not that anything was learnt.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ... import patch_token_contrast
from ...patch_contrast import reference
from .. import import_extra
from .class_contrast import BACKBONE, normalized, random_vit, value_and_grad
from .compare import Tensors, answers_here, device, side_by_side
from .pictures import IGNORED, Photograph
from .refinement import PATCH, colours_and_places, k_means

SIDE = 448  # pixels: ToCo's crops
SURE = 0.75  # the share of a patch that one cluster must cover; ToCo ignores patches whose CAMs leave doubt


def contrast_patches(photographs: list[Photograph]) -> list[str]:
    """Contrast the patch tokens of photographs; print the table; return what is wrong, which should be nothing."""
    images = cut_images(photographs)
    tokens, labels = patch_tokens(images), patch_labels(images).to(device())
    ignored, unit = int((labels == IGNORED).sum()), F.normalize(tokens.flatten(2), dim=1)
    negative = (unit.mT @ unit < 0).float().mean().item()  # the fewer, the less there is to compute
    print(f"patch tokens {BACKBONE}, random weights; {tuple(tokens.shape)} of photographs of {SIDE} x {SIDE} pixels")
    print(f"             {negative:.1%} of their cosines are negative")
    print(f"labels       k-means of colour and position; {ignored} of {labels.numel()} patches are ignored")
    print(f"toco_kernels {answers_here('patch_token_contrast')}")
    print("\npatch-token contrast, forward and backward, float32")
    providers = {"published": published_patch_contrast, "toco_kernels": fused_patch_contrast}
    small_inputs = tokens[:1, :8, :3, :4].clone(), labels[:1, :3, :4].clone()
    outcome = side_by_side(providers, [(tokens, labels)], small_inputs)
    patches = labels[0].numel()
    matrices = len(images) * patches**2 * (4 + 8) / 1e6
    print(f"The published code stores {patches} x {patches} cosines and labels of pairs per image, {matrices:.0f} MB;")
    print("both rows are the same loss and gradient.")
    return outcome.wrong


def published_patch_contrast(tokens: Tensor, labels: Tensor) -> Tensors:
    """Loss and gradient by the published sequence of operations and autograd."""

    def loss(tokens: Tensor) -> Tensor:  # (B, D, h, w)
        return reference.patch_token_contrast(tokens.flatten(2).mT, labels.flatten(1), None, IGNORED)

    return value_and_grad(loss, tokens)


def fused_patch_contrast(tokens: Tensor, labels: Tensor) -> Tensors:
    """Loss and gradient by the public function."""
    return value_and_grad(lambda tokens: patch_token_contrast(tokens, labels, ignore_index=IGNORED), tokens)


def cut_images(photographs: list[Photograph]) -> Tensor:  # (B, 3, SIDE, SIDE) in [0, 1]
    """The middle square of every photograph."""
    fit = import_extra("PIL.ImageOps", "demo").fit  # resizes, up or down, and cuts the longer side
    pixels = np.stack([np.asarray(fit(photograph.image, (SIDE, SIDE))) for photograph in photographs])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


@torch.no_grad()
def patch_tokens(images: Tensor) -> Tensor:  # (B, 3, SIDE, SIDE) -> (B, D, h, w)
    """The patch tokens of images, from a ViT with random weights."""
    vit = random_vit()
    tokens = vit.forward_features(normalized(images))[:, vit.num_prefix_tokens :]
    return tokens.mT.unflatten(2, (SIDE // PATCH, SIDE // PATCH)).contiguous()


def patch_labels(images: Tensor) -> Tensor:  # (B, 3, SIDE, SIDE) -> (B, h, w)
    """For each patch the cluster that covers most of it, found by k-means in its image; ignored where none does."""
    small = F.interpolate(images, scale_factor=0.25, mode="area")
    labels = []
    for pixels in small.permute(0, 2, 3, 1).numpy():
        clusters = k_means(colours_and_places(pixels)).view(1, *pixels.shape[:2])
        shares = F.avg_pool2d(F.one_hot(clusters).permute(0, 3, 1, 2).float(), PATCH // 4)
        best = shares.max(dim=1)
        labels.append(best.indices.masked_fill(best.values < SURE, IGNORED))
    return torch.cat(labels)
