"""The permutohedral lattice in plain PyTorch; part of the room's reference.

Features are scaled and turned into the hyperplane of d + 1 coordinates that sum to 0, which the lattice of points with
equal remainders modulo d + 1 cuts into simplices. A pixel spreads its values over the d + 1 corners of its simplex
(splat), the corners that some pixel touched are blurred by 1/2, 1, 1/2 along each of the d + 1 directions, and pixels
read the result back with the same weights (slice). With standard deviations of 1 in the given features.

Source: Adams, Baek, Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice, Eurographics 2010, without
its normalisation, as Krähenbühl & Koltun (NIPS 2011) use it.
"""

import math

import torch
from torch import Tensor

# Positions beyond this many lattice units are not numbers: float32 has no digits left there to interpolate with.
FARTHEST = float(1 << 21)


def lattice_filter(
    features: Tensor,  # (N, d) float32
    values: Tensor,  # (N, K)
    scales: list[float],  # (d), 1 / sigma
) -> Tensor:  # (N, K)
    """Splat, blur, slice; times 1 / (1 + 2^-d), as published. About 0.6 of the exact sum for d = 5."""
    pixels, d = features.shape
    keys, weights = embed(features, scales)
    points, corners = _distinct(keys.flatten(0, 1))  # (M, d), (N * (d + 1))
    weights = weights.to(values.dtype)

    spread = weights[:, :, None] * values[:, None, :]  # (N, d + 1, K)
    lattice = values.new_zeros(len(points), values.shape[1]).index_add_(0, corners, spread.flatten(0, 1))
    for direction in range(d + 1):
        step = points.new_ones(d)
        if direction < d:
            step[direction] = -d
        sides = _find(points, points + step), _find(points, points - step)
        # A row of zeros stands for neighbours that no pixel touched.
        padded = torch.cat([lattice, lattice.new_zeros(1, lattice.shape[1])])
        lattice = lattice + 0.5 * (padded[sides[0]] + padded[sides[1]])
    read = lattice[corners].unflatten(0, (pixels, d + 1))  # (N, d + 1, K)
    return (weights[:, :, None] * read).sum(dim=1) / (1 + 2.0**-d)


def embed(
    features: Tensor,  # (N, d) float32
    scales: list[float],  # (d)
) -> tuple[Tensor, Tensor]:  # (N, d + 1, d) int64, (N, d + 1) float32
    """The corners of each pixel's simplex, without their last coordinate, and the pixel's weight at each.

    In float32, one rounding for each operation below, in their order: every implementation finds the same corners.
    """
    d = features.shape[1]
    # Deviations of the blurs and of the interpolation, together 1.
    factors = [math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) * scale for i, scale in enumerate(scales)]
    scaled = features * torch.tensor(factors, dtype=torch.float32, device=features.device)
    elevated, total = [], torch.zeros_like(scaled[:, 0])
    for j in range(d, 0, -1):
        elevated.append(total - j * scaled[:, j - 1])
        total = total + scaled[:, j - 1]
    elevated = torch.stack([total, *reversed(elevated)], dim=1)  # (N, d + 1)
    within = (elevated.abs() < FARTHEST).all(dim=1, keepdim=True)
    elevated = torch.where(within, elevated, 0)

    whole = (elevated * (1 / (d + 1))).round()  # half to even
    above = whole.sum(dim=1, keepdim=True)
    rest = elevated - whole * (d + 1)
    less = rest[:, :, None] < rest[:, None, :]  # (N, d + 1, d + 1)
    tied = (rest[:, :, None] == rest[:, None, :]).tril(-1)  # of equals, the earlier comes first
    rank = (less | tied).sum(dim=2) + above.long()
    shift = (rank < 0).long() - (rank > d).long()
    whole, rank = whole + shift, rank + shift * (d + 1)

    shares = (elevated - whole * (d + 1)) * (1 / (d + 1))
    shares = torch.zeros_like(shares).scatter_(1, rank, shares)  # by rank: the largest first
    weights = torch.cat([1 - shares[:, :1] + shares[:, d:], (shares[:, :-1] - shares[:, 1:]).flip(1)], dim=1)
    weights = torch.where(within, weights, torch.nan)

    corner = torch.arange(d + 1, device=features.device)[:, None]  # its remainder modulo d + 1
    below = corner - (rank[:, None, :d] > d - corner) * (d + 1)  # (N, d + 1, d)
    return whole.long()[:, None, :d] * (d + 1) + below, weights


def _distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows of `keys`, sorted, and where each row is among them."""
    return torch.unique(keys, dim=0, return_inverse=True)


def _find(
    points: Tensor,  # (M, d), different and sorted
    wanted: Tensor,  # (L, d)
) -> Tensor:  # (L)
    """Where each row of `wanted` is among the points; M where it is not."""
    both, where = torch.unique(torch.cat([points, wanted]), dim=0, return_inverse=True)
    index = points.new_full((len(both),), len(points))
    index[where[: len(points)]] = torch.arange(len(points), device=points.device)
    return index[where[len(points) :]]
