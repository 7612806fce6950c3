"""Boxes, in the forms that data loaders give them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def stacked_boxes(
    img_box: Tensor | Sequence,  # (B, 4), on any device
    device: torch.device,
) -> Tensor:  # (B, 4)
    """A tensor of boxes, or a sequence of lists, arrays or tensors, as one tensor on `device`."""
    boxes = img_box if isinstance(img_box, Tensor) else torch.stack([torch.as_tensor(box) for box in img_box])
    return boxes.to(device)
