"""CAMs as SEAM's pixel correlation takes them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.checks import check_floating, check_tensor
from ..common.errors import bad_value

EPSILON = 1e-5


@torch.no_grad()
def correlation_maps(
    cams: Tensor,  # (B, C, H, W)
) -> Tensor:  # (B, C, H, W)
    """CAMs stretched to a maximum of 1, with one class for each pixel and a background: what PCM revises.

        m[c]  = max(0, cams[c] - 1e-5) / (max over pixels of max(0, cams[c]) + 1e-5)
        out   = m where it is the largest of the objects' (ties too), 0 elsewhere; background: 1 - that largest

    Args:
        cams: (B, C, H, W) float32, float64, float16 or bfloat16; class 0 is the background, whose own channel is not
            read. A constant, as in SEAM.

    Returns:
        (B, C, H, W) in the same dtype, without a gradient.

    Raises:
        TypeError: cams are no tensor or have a dtype not listed above.
        ValueError: there are no objects' classes.

    Source: SEAM (Wang et al., CVPR 2020), the input of its PCM.
    """
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(cams, "cams")
    if cams.shape[1] < 2:
        raise bad_value("cams", "have a background and at least one class", f"shape {tuple(cams.shape)}")
    objects = F.relu(cams[:, 1:])
    objects = F.relu(objects - EPSILON) / (objects.amax(dim=(2, 3), keepdim=True) + EPSILON)
    largest = objects.amax(dim=1, keepdim=True)
    return torch.cat([1 - largest, objects.masked_fill(objects < largest, 0)], dim=1)
