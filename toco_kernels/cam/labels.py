"""cam_to_label and cam_to_roi as PyTorch operators, and boxes on the patch grid."""

import torch
from torch import Tensor

from .._library import accumulate_dtype, define
from ..common.checks import (
    check_floating,
    check_tensor,
    checked_boxes,
    checked_image_labels,
    checked_threshold,
)
from ..common.errors import bad_value, integer, number
from . import reference


def _label_reference(cams, image_labels, boxes, high, low, high_map, low_map, ignore_index):
    cams = cams.to(accumulate_dtype(cams.dtype))
    high, low = (number if map is None else map[:, 0] for number, map in ((high, high_map), (low, low_map)))
    return reference.cam_to_label(cams, image_labels, boxes, high, low, ignore_index)


def _roi_reference(cams, image_labels, high, low):
    return reference.cam_to_roi(cams.to(accumulate_dtype(cams.dtype)), image_labels, high, low)


_cam_to_label = define(
    "cam_to_label(Tensor cams, Tensor image_labels, Tensor? boxes, float high, float low, Tensor? high_map, "
    "Tensor? low_map, int ignore_index) -> Tensor",
    room="cam",
    reference=_label_reference,
    fake=lambda cams, *_: cams.new_empty((cams.shape[0], *cams.shape[2:]), dtype=torch.int64),
)
_cam_to_roi = define(
    "cam_to_roi(Tensor cams, Tensor image_labels, float high, float low) -> Tensor",
    room="cam",
    reference=_roi_reference,
    fake=lambda cams, *_: cams.new_empty((cams.shape[0], *cams.shape[2:]), dtype=torch.uint8),
)


@torch.no_grad()
def cam_to_label(
    cams: Tensor,  # (B, C, H, W)
    image_labels: Tensor,  # (B, C)
    *,
    high: float | Tensor,  # Tensor: (B, 1, H, W)
    low: float | Tensor,
    boxes: Tensor | None = None,  # (B, 4)
    ignore_index: int = 255,
) -> Tensor:  # (B, H, W)
    """Pseudo labels from CAMs by two thresholds.

    With v the largest of an image's CAMs at a pixel, in which absent classes count as 0 and the first of equals wins:

        label = 0             where v <= low,
                ignore_index  where low < v <= high, and outside of the box,
                c + 1         elsewhere, for the class c that v belongs to

    Where low > high, nothing is ignored inside of the box. Absent classes are never read.

    Args:
        cams: (B, C, H, W) in [0, 1], float32, float64, float16 or bfloat16.
        image_labels: (B, C) multi-hot without background, any dtype.
        high, low: numbers, or maps (B, 1, H, W). ToCo: 0.7 and 0.25 on VOC, 0.65 and 0.25 on COCO.
        boxes: (B, 4) integers y0, y1, x0, x1, half-open as in Python slices, in pixels of the CAMs; `patch_boxes`
            gives those of a patch grid. None: everywhere.
        ignore_index: the label of pixels in doubt.

    Returns:
        (B, H, W) int64 labels.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree.

    Source: ToCo (Ru et al., CVPR 2023), `cam_to_label` with `ignore_mid` in its code.
    """
    image_labels = checked_cams(cams, image_labels)
    batch, _, height, width = cams.shape
    high, high_map = checked_threshold(high, "high", (batch, 1, height, width), cams)
    low, low_map = checked_threshold(low, "low", (batch, 1, height, width), cams)
    dtype = accumulate_dtype(cams.dtype)
    return _cam_to_label(
        cams,
        image_labels,
        checked_boxes(boxes, batch, cams, "cams"),
        high,
        low,
        None if high_map is None else high_map.to(dtype),
        None if low_map is None else low_map.to(dtype),
        integer(ignore_index, "ignore_index", least=-(2**31)),
    )


@torch.no_grad()
def cam_to_roi(
    cams: Tensor,  # (B, C, H, W)
    image_labels: Tensor,  # (B, C)
    *,
    high: float,
    low: float,
) -> Tensor:  # (B, H, W)
    """Regions from CAMs: 2, object, where v >= high; else 0, background, where v <= low; else 1, uncertain.

    v is the largest of an image's CAMs at a pixel; absent classes count as 0 and are never read.

    Args:
        cams: (B, C, H, W) in [0, 1], float32, float64, float16 or bfloat16.
        image_labels: (B, C) multi-hot without background, any dtype.
        high, low: the thresholds, numbers.

    Returns:
        (B, H, W) uint8 regions, for `crop_uncertain`.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree.

    Source: ToCo (Ru et al., CVPR 2023), `cam_to_roi_mask2` in its code.
    """
    image_labels = checked_cams(cams, image_labels)
    return _cam_to_roi(cams, image_labels, number(high, "high"), number(low, "low"))


def checked_cams(cams: Tensor, image_labels: Tensor) -> Tensor:
    """Check the CAMs, (B, C, H, W), and return the checked image labels, (B, C)."""
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(cams, "cams")
    if cams.shape[1] < 1:
        raise bad_value("cams", "have at least one class", f"shape {tuple(cams.shape)}")
    return checked_image_labels(image_labels, cams.shape[0], cams.shape[1], cams, "cams")


def patch_boxes(
    boxes: Tensor,  # (B, 4)
    patch: int,
) -> Tensor:  # (B, 4)
    """Boxes in pixels as boxes in patches: those of the patches whose centre lies in the box.

    Args:
        boxes: (B, 4) integers y0, y1, x0, x1, half-open, in pixels, none of them negative.
        patch: side of a patch in pixels, >= 1.

    Returns:
        (B, 4) in the dtype of `boxes`.

    Raises:
        TypeError: `boxes` is no tensor of integers.
        ValueError: `boxes` has another shape, or `patch` is out of range.

    The published code applies boxes in pixels to the patch grid as they are; see `compat.cam_to_label`.
    """
    check_tensor(boxes, "boxes", 2, "(B, 4)")
    checked_boxes(boxes, len(boxes), boxes, "boxes")
    patch = integer(patch, "patch", least=1)
    return (2 * boxes + (patch - 1)).div(2 * patch, rounding_mode="floor")
