"""What dense_energy computes, in plain PyTorch: two filters, and the energy and the mean field built on either."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .lattice import lattice_filter

PAIRS = 1 << 24  # pairs of pixels whose affinities are held at a time


def features(
    image: Tensor | None,  # (B, 3, H, W); None: positions alone
    size: tuple[int, int],
    batch: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:  # (B, H * W, 2 or 5): x, y and the colours
    """What distances of pixels are measured in, before each is divided by its sigma."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=dtype, device=device) for n in size), indexing="ij")
    positions = torch.stack([x.flatten(), y.flatten()], dim=-1).expand(batch, -1, -1)
    if image is None:
        return positions
    return torch.cat([positions, image.to(dtype).flatten(2).mT], dim=-1)


def exact_sum(
    features: Tensor,  # (N, d)
    values: Tensor,  # (N, K)
    scales: list[float],  # (d), 1 / sigma
) -> Tensor:  # (N, K)
    """sum over j of exp(-|f_i - f_j|² / 2) values_j, the pixel itself included."""
    scaled = features * torch.tensor(scales, dtype=features.dtype, device=features.device)
    sums = []
    for rows in scaled.split(max(1, PAIRS // max(1, len(scaled)))):
        squares = sum((rows[:, None, k] - scaled[None, :, k]).square() for k in range(scaled.shape[1]))
        sums.append(torch.exp(-squares / 2) @ values)
    return torch.cat(sums)


FILTERS = {"lattice": lattice_filter, "exact": exact_sum}


def filter_maps(
    image: Tensor | None,  # (B, 3, H, W); None: positions alone
    values: Tensor,  # (B, K, H, W)
    scales: list[float],  # 1 / sigma, of x, y and the colours
    kernel: str,
) -> Tensor:  # (B, K, H, W)
    """Every image's values, filtered by the distance of its pixels."""
    # The lattice lies where float32 puts it, for values of any dtype.
    dtype = torch.float32 if kernel == "lattice" else values.dtype
    points = features(image, values.shape[2:], len(values), dtype=dtype, device=values.device)
    filtered = [FILTERS[kernel](p, v.flatten(1).mT, scales) for p, v in zip(points, values, strict=True)]
    return torch.stack(filtered).mT.reshape(values.shape) if filtered else torch.zeros_like(values)


def bilateral_filter(
    image: Tensor,  # (B, 3, H, W)
    values: Tensor,  # (B, K, H, W)
    sigma_rgb: float,
    sigma_xy: float,
    kernel: str,
) -> Tensor:  # (B, K, H, W)
    """Every image's values, filtered by the distance of its pixels in position and colour."""
    return filter_maps(image, values, [1 / sigma_xy] * 2 + [1 / sigma_rgb] * 3, kernel)


def dense_energy(
    probabilities: Tensor,  # (B, K, H, W)
    image: Tensor,  # (B, 3, H, W)
    roi: Tensor,  # (B, H, W)
    unlabeled: Tensor,  # (B, H, W) bool
    sigma_rgb: float,
    sigma_xy: float,
    *,
    kernel: str,
) -> Tensor:  # ()
    """The formula of the room's docstring, with the published gradient: gate and filtered values count as constants."""
    gate = (roi - probabilities.detach().amax(dim=1)).clamp(min=0).masked_fill(unlabeled, 1)
    inside = probabilities * roi[:, None]
    filtered = bilateral_filter(image, inside.detach(), sigma_rgb, sigma_xy, kernel)
    energy = -(inside * (gate[:, None] * filtered)).sum() / max(1, len(inside))
    return 2 * energy - energy.detach()  # once the energy, twice its gradient: both ends of a pair move


def dense_energy_from_logits(
    logits: Tensor,  # (B, K, H, W)
    image: Tensor,  # (B, 3, h, w)
    roi: Tensor,  # (B, h, w)
    unlabeled: Tensor,  # (B, h, w) bool
    sigma_rgb: float,
    sigma_xy: float,
    *,
    kernel: str,
) -> Tensor:  # ()
    """The energy of the classes' probabilities, resized to the image."""
    probabilities = F.softmax(logits, dim=1)
    if len(logits):  # interpolate refuses an empty batch
        probabilities = F.interpolate(probabilities, size=image.shape[2:], mode="bilinear", align_corners=False)
    else:
        probabilities = probabilities[..., : image.shape[2], : image.shape[3]]
    return dense_energy(probabilities, image, roi, unlabeled, sigma_rgb, sigma_xy, kernel=kernel)


def normalised(filter_values: Callable[[Tensor], Tensor], ones: Tensor) -> Callable[[Tensor], Tensor]:
    """The filter between two multiplications by 1 / sqrt(filter of ones): what dense CRFs call symmetric."""
    norm = (filter_values(ones) + 1e-20).rsqrt()
    return lambda values: norm * filter_values(norm * values)


def mean_field(
    unary: Tensor,  # (B, K, H, W)
    terms: list[tuple[Tensor | None, list[float], float]],  # image (B, 3, H, W), scales and weight of each filter
    iterations: int,
    kernel: str,
) -> Tensor:  # (B, K, H, W)
    """Q <- softmax(-unary + sum over filters of weight * normalised filter of Q)."""
    ones = torch.ones_like(unary[:, :1])
    filters = [
        (normalised(partial(filter_maps, image, scales=scales, kernel=kernel), ones), weight)
        for image, scales, weight in terms
    ]
    q = F.softmax(-unary, dim=1)
    for _ in range(iterations):
        logits = -unary
        for filter_values, weight in filters:
            logits = logits + weight * filter_values(q)
        q = F.softmax(logits, dim=1)
    return q


def dense_crf(
    unary: Tensor,  # (B, K, H, W)
    image: Tensor,  # (B, 3, H, W)
    iterations: int,
    gaussian: tuple[float, float],  # sigma_xy, weight
    bilateral: tuple[float, float, float],  # sigma_xy, sigma_rgb, weight
    *,
    kernel: str,
) -> Tensor:  # (B, K, H, W)
    """Mean field with a filter of positions, and one of positions and colours."""
    near_xy, near_weight = gaussian
    xy, rgb, weight = bilateral
    near = None, [1 / near_xy] * 2, near_weight
    alike = image, [1 / xy] * 2 + [1 / rgb] * 3, weight
    return mean_field(unary, [near, alike], iterations, kernel)
