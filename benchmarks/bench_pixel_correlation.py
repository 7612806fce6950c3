"""Pixel correlation at SEAM's size: products of N × N pixels and, as published, the traffic of those matrices."""

import torch
import torch.nn.functional as F
from harness import DEVICE, TRAINING, Bench, Case

from toco_kernels import correlation_maps, pixel_correlation
from toco_kernels.pixel_correlation import reference


def inputs(generator, *, batch, side, width=192, classes=21, common=0.0, clear=True):
    """Features that change slowly over the image, with noise; maps as SEAM gives them to PCM.

    Half of the cosines are negative, unless features have `common` times a direction in common. `clear` makes the signs
    of all sure, which takes a matrix of all pixels, and is not needed where nothing is verified.
    """
    coarse = torch.randn(batch, width, 7, 7, generator=generator)
    features = F.interpolate(coarse, size=(side, side), mode="bicubic")
    features += torch.randn(batch, width, side, side, generator=generator)
    features += common * torch.randn(batch, width, 1, 1, generator=generator)
    cams = F.interpolate(torch.randn(batch, classes, 6, 6, generator=generator), size=(side, side), mode="bicubic")
    features = clear_of_zero(generator, features) if clear else features
    return {"features": features, "cams": correlation_maps(cams)}


def clear_of_zero(generator, features):
    """These features, some pixels moved, so that no cosine is within 1e-6 of 0; in numbers that bfloat16 holds.

    The gradient jumps there. Where float32 cannot tell a sign, one right answer differs from another by far more than
    verification allows.
    """
    features = features.bfloat16().float()
    for image in features.flatten(2):
        near = torch.ones(image.shape[1], dtype=torch.bool)
        while near.any():
            unit = F.normalize(image, dim=0)
            near = ((unit.T @ unit).abs_() < 1e-6).any(dim=1)
            moved = image[:, near] + torch.randn(len(image), int(near.sum()), generator=generator) / 2
            image[:, near] = moved.bfloat16().float()
    return features


def flop(direction, *, features, cams):
    """Each cosine once, by symmetry, and the maps; for the gradient one product with the features, and the slopes."""
    batch, width, side, _ = features.shape
    pairs, classes = batch * side**4, cams.shape[1] + 1
    once = pairs * (width + 2 * classes)
    return once + pairs * 2 * (width + classes) if direction == TRAINING else once


def blas(direction, *, features, cams):
    """The products of a straightforward implementation, image by image: memory for one matrix."""
    for x, m in zip(features.flatten(2), cams.flatten(2), strict=True):
        similar = x.T @ x
        m @ similar
        if direction == TRAINING:
            m.T @ m
            x @ similar


def published(features, cams):
    """In float32, as published: in bfloat16 its gradient is off by more than verification allows."""
    features, cams = (x if x.dtype == torch.float64 else x.float() for x in (features, cams))
    return reference.pixel_correlation(features.flatten(2), cams.flatten(2)).view(cams.shape)


class Rewrite(torch.autograd.Function):
    """Image by image, the sums as one more class, the gradient by hand: a symmetric matrix of slopes, one product.

    Tried at SEAM's size: the published sequence image by image; in chunks of 392, 784 and 1568 columns; with the matrix
    of similarities kept for the backward (faster by a tenth, and as large as the published one).
    """

    @staticmethod
    def forward(ctx, features, cams):
        x, m = features.flatten(2), cams.flatten(2)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        unit = x / (norm + reference.EPSILON).to(x.dtype)
        maps = torch.cat([m, m.new_ones(m.shape[0], 1, m.shape[2])], dim=1)
        if DEVICE == "cuda":
            gathered = maps @ (unit.mT @ unit).relu_()
        else:
            gathered = torch.stack([k @ (u.T @ u).relu_() for u, k in zip(unit, maps, strict=True)])
        sums = gathered[:, -1:].float() + reference.EPSILON
        revised = gathered[:, :-1] / sums
        ctx.save_for_backward(unit, norm, maps, revised, sums)
        return revised.to(cams.dtype).view(cams.shape)

    @staticmethod
    def backward(ctx, grad):
        unit, norm, maps, revised, sums = ctx.saved_tensors
        slopes = grad.flatten(2) / sums
        slopes = torch.cat([slopes, -torch.linalg.vecdot(slopes, revised.to(slopes.dtype), dim=1)[:, None]], dim=1)
        left, right = torch.cat([maps, slopes], dim=1), torch.cat([slopes, maps], dim=1)
        if DEVICE == "cuda":
            total = unit @ (left.mT.to(unit.dtype) @ right.to(unit.dtype)).mul_(unit.mT @ unit > 0)
        else:
            total = torch.stack(
                [
                    u @ (a.T @ b).to(u.dtype).masked_fill_(u.T @ u <= 0, 0)
                    for u, a, b in zip(unit, left, right, strict=True)
                ]
            )
        along = torch.linalg.vecdot(total.float(), unit.float(), dim=1)[:, None]
        total = total / (norm + reference.EPSILON) - unit * (along / norm.clamp_min(1e-30))
        return total.to(unit.dtype).unflatten(2, grad.shape[2:]), None


def rewrite(features, cams):
    return Rewrite.apply(features, cams)


BENCH = Bench(
    room="pixel_correlation",
    op="pixel_correlation",
    providers={"toco_kernels": pixel_correlation, "published": published, "rewrite": rewrite},
    inputs=inputs,
    differentiable=("features",),
    flop=flop,
    blas=blas,
    tiny={"batch": 1, "side": 5, "width": 8, "classes": 3},
    cases=[
        Case("SEAM, eight images", {"batch": 8, "side": 56}, decisive=True),
        Case("SEAM, one image", {"batch": 1, "side": 56}),
        Case("the small view", {"batch": 8, "side": 16}),
        Case("COCO", {"batch": 2, "side": 56, "classes": 81}),
        Case("two images, correlated, bfloat16", {"batch": 2, "side": 56, "common": 2.0}, torch.bfloat16),
    ],
)


@BENCH.every_case
def test_pixel_correlation(case, direction, compare):
    compare(BENCH, case, direction)
