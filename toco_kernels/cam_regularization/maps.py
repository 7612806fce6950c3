"""Class maps stretched to 0 … 1, and with one class for each pixel."""

import torch
from torch import Tensor

from ..common.checks import check_floating, check_tensor
from . import reference


def max_norm(
    cams: Tensor,  # (B, C, H, W)
    epsilon: float = reference.EPSILON,
) -> Tensor:  # (B, C, H, W)
    """Class maps stretched to 0 … 1, each by its own range.

        out = max(0, r - min r - epsilon) / (max r - min r + epsilon),   r = max(0, cams)

    with the range over the pixels of an image and class. Differentiable, also through the range.

    Source: SEAM (Wang et al., CVPR 2020), `max_norm` in its code.
    """
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(cams, "cams")
    return reference.max_norm(cams, epsilon)


def max_onehot(
    cams: Tensor,  # (B, C, H, W)
) -> Tensor:  # (B, C, H, W)
    """In each pixel only the largest of the objects' scores (ties too); class 0, the background, stays as it is.

    Source: SEAM (Wang et al., CVPR 2020), `max_onehot` in its code, which changes its argument in place.
    """
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(cams, "cams")
    return reference.max_onehot(cams)


def stretched_mean(
    maps: Tensor,  # (B, C, h, w)
    size: tuple[int, int],
) -> Tensor:  # (B, C)
    """The mean over the pixels of maps stretched to `size` (bilinear, aligned corners), without stretching them: each
    pixel of the grid counts as much as all its shares of stretched pixels.
    """
    of_rows, of_columns = (_shares(*n, maps) for n in zip(maps.shape[2:], size, strict=True))
    return torch.einsum("bchw,h,w->bc", maps, of_rows, of_columns)


def _shares(count: int, stretched: int, like: Tensor) -> Tensor:  # (count), of sum 1
    """How much each of `count` points counts in the mean of a line stretched to so many."""
    points = torch.eye(count, dtype=like.dtype, device=like.device)[None, :, :, None]
    return reference.stretched(points, [stretched, 1]).mean(dim=(0, 2, 3))
