"""refine_cam_labels as a PyTorch operator: CAMs to pseudo labels, refined to the borders of objects."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._library import accumulate_dtype, define
from ..common.checks import (
    check_floating,
    check_same_device,
    check_tensor,
    checked_boxes,
    checked_image_labels,
    checked_threshold,
)
from ..common.errors import bad_value, integer
from . import reference
from .op import DILATIONS, checked_dilations, checked_option


def _reference(image, cams, image_labels, boxes, high, low, high_map, low_map, *others):
    maps = (
        cams.new_full((cams.shape[0], *cams.shape[2:]), score) if given is None else given[:, 0]
        for score, given in ((high, high_map), (low, low_map))
    )
    return reference.refine_cam_labels(image, cams, image_labels, boxes, *maps, *others)


_refine_cam_labels = define(
    "refine_cam_labels(Tensor image, Tensor cams, Tensor image_labels, Tensor? boxes, float high, float low, "
    "Tensor? high_map, Tensor? low_map, int ignore_index, int down_scale, int[] dilations, int iterations, str kind, "
    "int max_classes) -> Tensor",
    room="affinity_refine",
    reference=_reference,
    fake=lambda image, cams, *_: cams.new_empty((cams.shape[0], *cams.shape[2:]), dtype=torch.int64),
)


@torch.no_grad()
def refine_cam_labels(
    image: Tensor,  # (B, colours, H, W)
    cams: Tensor,  # (B, C, H, W)
    image_labels: Tensor,  # (B, C)
    boxes: Tensor | None = None,  # (B, 4)
    *,
    high: float | Tensor,  # Tensor: (B, 1, H, W)
    low: float | Tensor,
    ignore_index: int = 255,
    down_scale: int = 2,
    dilations: Sequence[int] = DILATIONS,
    iterations: int = 10,
    kind: str = "par",
    max_classes: int | None = None,
) -> Tensor:  # (B, H, W)
    """Pseudo labels from CAMs, refined to the borders of objects, for a whole batch at once.

    Each image is refined twice, with the background scored `high` and `low` everywhere:

        scores(s) = upsample(refine(softmax over background and present classes of downsample([s, cams])))
        label(s)  = argmax of scores(s), 0 for the background, c + 1 for class c

    and the label is label(high) where that is a class, 0 where both are background, ignore_index elsewhere and
    outside the box. Both runs share one set of affinities, and nothing loops over images in Python.

    Args:
        image: (B, colours, H, W) in any range.
        cams: (B, C, H, W) in [0, 1].
        image_labels: (B, C) multi-hot without background, any dtype; only present classes take part.
        boxes: (B, 4) integers y0, y1, x0, x1, half-open as in Python slices, in pixels: where the crop shows the
            photograph; None: everywhere.
        high, low: the background's score, a number or a map (B, 1, H, W). ToCo: 0.7 and 0.25 on VOC.
        ignore_index: the label of pixels in doubt.
        down_scale: refinement runs at 1 / down_scale of the size, >= 1.
        dilations, iterations, kind: as for `affinity_refine`.
        max_classes: at most how many present classes an image has; further ones, by index, are left out. On a GPU, None
            costs one host synchronisation to size the work, and a number none.

    Returns:
        (B, H, W) int64 labels.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, or an option is out of its range.

    Source: ToCo (Ru et al., CVPR 2023), `refine_cams_with_bkg_v2` in its code.
    """
    check_tensor(image, "image", 4, "(B, colours, H, W)")
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(image, "image")
    check_floating(cams, "cams")
    check_same_device(image, "image", cams, "cams")
    batch, classes, height, width = cams.shape
    if image.shape[0] != batch or image.shape[2:] != cams.shape[2:]:
        raise bad_value("image", f"have cams' batch and size, {(batch, height, width)}", f"shape {tuple(image.shape)}")
    if image.shape[1] < 1:
        raise bad_value("image", "have at least one colour", f"shape {tuple(image.shape)}")
    image_labels = checked_image_labels(image_labels, batch, classes, cams, "cams")
    boxes = checked_boxes(boxes, batch, cams, "cams")
    down_scale = integer(down_scale, "down_scale", least=1)
    iterations = integer(iterations, "iterations", least=0)
    ignore_index = integer(ignore_index, "ignore_index", least=-(2**31))
    if down_scale > height or down_scale > width:
        raise bad_value("down_scale", f"leave pixels of {(height, width)}", down_scale)
    most = -1 if max_classes is None else integer(max_classes, "max_classes", least=0)
    checked_option("kind", kind, ("par", "pamr"))
    dilations = checked_dilations(dilations)

    dtype = accumulate_dtype(cams.dtype)
    map_shape = (batch, 1, height, width)
    high, high_map = checked_threshold(high, "high", map_shape, cams)
    low, low_map = checked_threshold(low, "low", map_shape, cams)
    return _refine_cam_labels(
        image.to(dtype),
        cams.to(dtype),
        image_labels,
        boxes,
        high,
        low,
        None if high_map is None else high_map.to(dtype),
        None if low_map is None else low_map.to(dtype),
        ignore_index,
        down_scale,
        dilations,
        iterations,
        kind,
        most,
    )
