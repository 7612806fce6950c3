"""What AffinityNet is given: labels on the network's grid, and class maps with a background."""

import torch
from torch import Tensor

from ...common.checks import check_floating, check_tensor
from ...common.errors import bad_type, bad_value, integer, number

LABELS = 256


def grid_labels(
    labels: Tensor,  # (B, H, W)
    *,
    stride: int = 8,
) -> Tensor:  # (B, H / stride, W / stride)
    """Labels of the cells of a coarser grid: what most of a cell's pixels have, and if those are open, so is the cell.

    The published code pools the scores of two sets of labels, and takes the best of each; here the labels are decided
    first. Of equally many, the lowest class wins, and an open cell loses.

    Args:
        labels: (B, H, W) integers in 0..255, 255 where nobody is sure; sides are multiples of the stride.
        stride: side of a cell in pixels.

    Returns:
        (B, H / stride, W / stride) int64.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    check_tensor(labels, "labels", 3, "(B, H, W)")
    if labels.is_floating_point() or labels.is_complex():
        raise bad_type("labels", "be integers", labels.dtype)
    stride = integer(stride, "stride", least=1)
    batch, height, width = labels.shape
    if height % stride or width % stride:
        raise bad_value("labels", f"have sides that are multiples of {stride}", f"shape {tuple(labels.shape)}")
    cells = labels.long().view(batch, height // stride, stride, width // stride, stride).transpose(2, 3).flatten(3)
    counts = torch.zeros(*cells.shape[:3], LABELS, dtype=torch.int32, device=labels.device)
    return counts.scatter_add_(3, cells, torch.ones_like(cells, dtype=torch.int32)).argmax(dim=3)


def with_background(
    cams: Tensor,  # (B, C, H, W)
    *,
    background: float,
    power: float | None = None,
) -> Tensor:  # (B, C + 1, H, W)
    """Class maps, and before them the background's: a constant, or (1 - the largest of the maps) to a power.

    Args:
        cams: (B, C, H, W) in [0, 1].
        background: the constant.
        power: None, or the power; then the constant is not read.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(cams, "cams")
    if power is None:
        first = cams.new_full((len(cams), 1, *cams.shape[2:]), number(background, "background"))
    else:
        first = (1 - cams.amax(dim=1, keepdim=True)).clamp(min=0) ** number(power, "power")
    return torch.cat([first, cams], dim=1)
