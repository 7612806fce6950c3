"""Affinities of neighbouring pixels from their features, and the labels of such pairs. No N × N matrix."""

import torch
from torch import Tensor

from ..._library import accumulate_dtype, no_second_derivative
from ...affinity_propagate.reference import offsets, shifted
from ...common.checks import check_floating, check_tensor
from ...common.errors import integer


def pair_affinity(
    features: Tensor,  # (B, D, H, W)
    *,
    radius: int = 5,
) -> Tensor:  # (B, P, H, W)
    """How alike a pixel and each of its neighbours are, as `random_walk` takes it.

        a[k][i] = exp(-mean over channels of |f[i] - f[i + offset k]|)        0 where that is outside of the map

    In plain PyTorch, a shift for each of the P neighbours: time and result are O(P · N), not N², and beside the result
    it needs two copies of the features, in the backward as well, which computes the differences again.

    Args:
        features: (B, D, H, W) float32, float64, float16 or bfloat16; differentiable.
        radius: neighbours are closer than this, >= 1; those of `affinity_propagate.reference.offsets`, 34 for 5.

    Returns:
        (B, P, H, W) float32 (float64 for float64 features).

    Raises:
        TypeError, ValueError: an argument is not as above.

    Source: Ahn & Kwak, Learning Pixel-level Semantic Affinity (AffinityNet), CVPR 2018, equation 1.
    """
    check_tensor(features, "features", 4, "(B, D, H, W)")
    check_floating(features, "features")
    radius = integer(radius, "radius", least=1)
    return _PairAffinity.apply(features, radius)


class _PairAffinity(torch.autograd.Function):
    """What autograd would keep for this are all differences, P copies of the features."""

    @staticmethod
    def forward(ctx, features: Tensor, radius: int) -> Tensor:
        x = features.to(accumulate_dtype(features.dtype))
        batch, _, height, width = x.shape
        steps = offsets(radius)
        affinities = x.new_zeros(batch, len(steps), height, width)
        for k, step in enumerate(steps):
            start, end = _ends(step, height, width)
            affinities[:, k][start] = (x[start] - x[end]).abs_().mean(dim=1).neg_().exp_()
        ctx.save_for_backward(features, affinities)
        ctx.radius = radius
        return affinities

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        saved, affinities = ctx.saved_tensors
        features, affinities = saved.detach(), affinities.detach()
        x = features.to(affinities.dtype)
        _, channels, height, width = x.shape
        scaled = grad * affinities / -channels
        grad_x = torch.zeros_like(x)
        for k, step in enumerate(offsets(ctx.radius)):
            start, end = _ends(step, height, width)
            change = (x[start] - x[end]).sign_() * scaled[:, k][start][:, None]
            grad_x[start] += change
            grad_x[end] -= change
        grad_x = grad_x.to(features.dtype)
        if torch.is_grad_enabled():  # create_graph=True
            grad_x = no_second_derivative("affinities have", grad_x.detach(), saved)
        return grad_x, None


def _ends(step: tuple[int, int], height: int, width: int) -> tuple[tuple, tuple]:
    """Where pairs begin in a map, and where they end."""
    y, x = step
    rows, columns = slice(0, max(height - y, 0)), slice(max(-x, 0), max(width - max(x, 0), max(-x, 0)))
    to_rows, to_columns = slice(min(y, height), height), slice(max(x, 0), max(width + min(x, 0), max(x, 0)))
    return (..., rows, columns), (..., to_rows, to_columns)


def inner(
    height: int,
    width: int,
    radius: int,
    device: torch.device,
) -> Tensor:  # (H, W) bool
    """Where published pairs begin: all neighbours of such a pixel are on the map."""
    reach = radius - 1
    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    return (y < height - reach) & (x >= reach) & (x < width - reach)


def pair_kinds(
    labels: Tensor,  # (B, H, W)
    radius: int,
    inner_pairs: bool,
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor, Tensor]:  # (B, P, H, W) bool each
    """Which pairs are both background, both the same object, and neither; those with an open end are none of these."""
    ends = torch.stack([shifted(labels, *step, ignore_index) for step in offsets(radius)], dim=1)
    starts = labels[:, None]
    valid = (starts != ignore_index) & (ends != ignore_index)
    if inner_pairs:
        valid = valid & inner(*labels.shape[1:], radius, labels.device)
    same = valid & (starts == ends)
    return same & (starts == 0), same & (starts != 0), valid & (starts != ends)
