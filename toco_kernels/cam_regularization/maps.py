"""Class maps stretched to 0 … 1, and with one class for each pixel."""

import torch.nn.functional as F
from torch import Tensor

from ..common.checks import check_floating, check_tensor

EPSILON = 1e-5


def max_norm(
    cams: Tensor,  # (B, C, H, W)
    epsilon: float = EPSILON,
) -> Tensor:  # (B, C, H, W)
    """Class maps stretched to 0 … 1, each by its own range.

        out = max(0, r - min r - epsilon) / (max r - min r + epsilon),   r = max(0, cams)

    with the range over the pixels of an image and class. Differentiable, also through the range.

    Source: SEAM (Wang et al., CVPR 2020), `max_norm` in its code.
    """
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(cams, "cams")
    cams = F.relu(cams)
    low, high = cams.amin(dim=(2, 3), keepdim=True), cams.amax(dim=(2, 3), keepdim=True)
    return F.relu(cams - low - epsilon) / (high - low + epsilon)


def max_onehot(
    cams: Tensor,  # (B, C, H, W)
) -> Tensor:  # (B, C, H, W)
    """In each pixel only the largest of the objects' scores (ties too); class 0, the background, stays as it is.

    Source: SEAM (Wang et al., CVPR 2020), `max_onehot` in its code, which changes its argument in place.
    """
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(cams, "cams")
    smaller = cams != cams[:, 1:].amax(dim=1, keepdim=True)
    smaller[:, 0] = False
    return cams.masked_fill(smaller, 0)
