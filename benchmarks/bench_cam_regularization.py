"""SEAM's losses on class maps: limited by how often stretched maps are written and read, or by making them anew."""

import torch
import torch.nn.functional as F
from harness import TRAINING, Bench, Case

from toco_kernels import adaptive_min_pooling_loss, seam_losses
from toco_kernels.cam_regularization import reference
from toco_kernels.methods.ppc import published as as_published

SECOND = 128  # pixels of the second view's side


def smooth(generator, batch, classes, side):
    """Class maps that change slowly."""
    coarse = torch.randn(batch, classes, 6, 6, generator=generator)
    return F.interpolate(coarse, size=(side, side), mode="bicubic")


def labels(generator, batch, classes, present):
    """Multi-hot, so many classes in each image."""
    chosen = torch.rand(batch, classes, generator=generator).topk(present, dim=1).indices
    return torch.zeros(batch, classes).scatter_(1, chosen, 1.0)


def inputs(generator, *, batch, size=448, classes=20, present=3):
    """Maps with the background, on grids of stride 8."""
    sides = -(-size // 8), SECOND // 8
    names = ("cams", 0), ("other_cams", 1), ("revised", 0), ("other_revised", 1)
    maps = {name: smooth(generator, batch, classes + 1, sides[view]) for name, view in names}
    return {
        **maps,
        "image_labels": labels(generator, batch, classes, min(present, classes)),
        "sizes": ((size, size), (SECOND, SECOND)),
    }


def flop(direction, *, image_labels, sizes, **_):
    """For each class that is shown, and each of four maps: stretched by three operations, its range found by two."""
    planes = int(image_labels.sum()) + len(image_labels)
    once = planes * 2 * 5 * sum(height * width for height, width in sizes)
    return 2 * once if direction == TRAINING else once


def ours(**arguments):
    return sum(seam_losses(**arguments))


def published(cams, other_cams, revised, other_revised, image_labels, sizes):
    """In float32, as published: in bfloat16 its gradient is off by more than verification allows."""
    maps = [x if x.dtype == torch.float64 else x.float() for x in (cams, other_cams, revised, other_revised)]
    shown = F.pad(image_labels.to(maps[0].dtype), (1, 0), value=1)[:, :, None, None]
    large = [as_published.stretched(x, size) for x, size in zip(maps, (*sizes, *sizes), strict=True)]
    compared = (as_published.stretched(as_published.max_norm(x), sizes[1]) * shown for x in large)
    return sum(as_published.seam(*compared, 0.2))


def rewrite(cams, other_cams, revised, other_revised, image_labels, sizes):
    """Only the maps of classes that an image shows, as many for each image as the richest has; nothing is sorted.

    Tried with three of 20 classes: all maps with `kthvalue` instead of a sort, a fifth of this one's speed; image by
    image, which needs a fourth of the memory and is slower.
    """
    shown = F.pad(image_labels != 0, (1, 0), value=True)
    most = int(shown.sum(dim=1).max())
    order = shown.to(torch.uint8).sort(dim=1, descending=True, stable=True)
    present = order.values[:, :most, None, None].to(cams.dtype)
    maps = []
    for x, size in zip((cams, other_cams, revised, other_revised), (*sizes, *sizes), strict=True):
        x = x.take_along_dim(order.indices[:, :most, None, None], dim=1)
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        maps.append(reference.stretched(reference.max_norm(x, reference.EPSILON), sizes[1]) * present)
    pixels = sizes[1][0] * sizes[1][1]
    er = (maps[0][:, 1:] - maps[1][:, 1:]).abs().sum() / max(1, image_labels.numel() * pixels)
    kept = int(0.2 * shown.shape[1] * pixels)
    return er + largest(maps[1], maps[2], kept) + largest(maps[0], maps[3], kept)


def largest(target, revised, kept):
    """One half of ECR. Of fewer differences than are kept, the others are 0."""
    with torch.no_grad():
        background = 1 - F.pad(target[:, 1:], (0, 0, 0, 0, 1, 0)).amax(dim=1, keepdim=True)
        target = reference.max_onehot(torch.cat([background, target[:, 1:]], dim=1))
    difference = (target - revised).abs().flatten(1)
    if kept >= difference.shape[1]:
        return difference.sum() / (kept * len(difference))
    return reference.mean_of_largest(difference, kept)


BENCH = Bench(
    room="cam_regularization",
    op="seam_losses",
    providers={"toco_kernels": ours, "published": published, "rewrite": rewrite},
    inputs=inputs,
    differentiable=("cams", "other_cams", "revised", "other_revised"),
    flop=flop,
    tiny={"batch": 1, "size": 16, "classes": 2},
    cases=[
        Case("SEAM, VOC, four images", {"batch": 4}, decisive=True),
        Case("COCO, two images", {"batch": 2, "classes": 80}),
        Case("every class", {"batch": 1, "present": 20}),
    ],
)


@BENCH.every_case
def test_seam_losses(case, direction, compare):
    compare(BENCH, case, direction)


def pooling_inputs(generator, *, batch, size=448, classes=20, present=3):
    return {
        "cams": smooth(generator, batch, classes, -(-size // 8)),
        "image_labels": labels(generator, batch, classes, min(present, classes)),
        "size": (size, size),
    }


def pooling_flop(direction, *, image_labels, size, **_):
    """Three operations to stretch a map, one to compare."""
    once = int(image_labels.sum()) * 4 * size[0] * size[1]
    return 2 * once if direction == TRAINING else once


def pooling_published(cams, image_labels, size):
    cams = cams if cams.dtype == torch.float64 else cams.float()
    shown = as_published.stretched(cams, size) * image_labels.to(cams.dtype)[:, :, None, None]
    return as_published.min_pooling(F.pad(shown, (0, 0, 0, 0, 1, 0)))


def pooling_rewrite(cams, image_labels, size):
    """Only the maps of classes that an image shows, and no sort."""
    most = int(image_labels.sum(dim=1).max())
    order = image_labels.sort(dim=1, descending=True, stable=True)
    x = cams.take_along_dim(order.indices[:, :most, None, None], dim=1)
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=True) * order.values[:, :most, None, None]
    shown = F.relu(x.amax(dim=1)).flatten(1)
    return -reference.mean_of_largest(-shown, shown.shape[1] // 4)


POOLING_BENCH = Bench(
    room="cam_regularization",
    op="adaptive_min_pooling_loss",
    providers={"toco_kernels": adaptive_min_pooling_loss, "published": pooling_published, "rewrite": pooling_rewrite},
    inputs=pooling_inputs,
    differentiable=("cams",),
    flop=pooling_flop,
    tiny={"batch": 1, "size": 16, "classes": 2},
    cases=[Case("SEAM, VOC, four images", {"batch": 4}, decisive=True)],
)


@POOLING_BENCH.every_case
def test_adaptive_min_pooling_loss(case, direction, compare):
    compare(POOLING_BENCH, case, direction)
