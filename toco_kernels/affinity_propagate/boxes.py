"""component_boxes as a PyTorch operator."""

import torch
from torch import Tensor

from .._library import accumulate_dtype, define
from ..common.checks import check_floating, check_tensor
from ..common.errors import number
from . import reference


def _boxes(cams: Tensor, threshold: float) -> Tensor:
    return reference.component_boxes(cams.to(accumulate_dtype(cams.dtype)), threshold)


_operator = define(
    "component_boxes(Tensor cams, float threshold) -> Tensor",
    room="affinity_propagate",
    reference=_boxes,
    fake=lambda cams, *_: cams.new_empty(cams.shape, dtype=torch.bool),
)


def component_boxes(
    cams: Tensor,  # (B, C, H, W)
    *,
    threshold: float = 0.4,
) -> Tensor:  # (B, C, H, W)
    """Where each class may be: the bounding boxes of its connected regions, for `propagate_attention(box_mask=…)`.

        regions of class c = connected pixels with cams[c] > threshold * max(cams[c]);  corners connect

    Args:
        cams: (B, C, H, W) float32, float64, float16 or bfloat16. Where one is NaN, or none is above, there is no box.
        threshold: of the class's largest score; CLIP-ES: 0.4 on VOC, 0.7 on COCO.

    Returns:
        (B, C, H, W) bool: whether a pixel is in a box of its class.

    Raises:
        TypeError: cams are no tensor or have a dtype not listed above, or the threshold is no number.
        ValueError: cams do not have 4 dimensions.

    On a GPU this is plain PyTorch that floods the regions step by step, and waits for the GPU after each.

    Source: Lin et al., CLIP is Also an Efficient Segmenter (CLIP-ES), CVPR 2023, box mask of the attention-based
    affinity; there the regions are contours of OpenCV, of scores rounded to 256 values.
    """
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(cams, "cams")
    return _operator(cams.detach(), number(threshold, "threshold"))
