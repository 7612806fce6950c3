"""merge_cams as PyTorch operators: from the small maps of all scales to the CAM, or straight to labels or regions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._library import accumulate_dtype, define
from ..common.checks import (
    check_constant,
    check_floating,
    check_same_device,
    check_tensor,
    checked_boxes,
    checked_image_labels,
)
from ..common.errors import bad_type, bad_value, integer, number
from . import reference


def _merge_reference(maps, image_labels, size, out_size):
    dtype = maps[0].dtype
    maps = [x.to(accumulate_dtype(dtype)) for x in maps]
    return reference.merge_cams(maps, image_labels, size, out_size).to(dtype)


def _label_reference(maps, image_labels, boxes, size, out_size, high, low, ignore_index):
    maps = [x.to(accumulate_dtype(x.dtype)) for x in maps]
    cams = reference.merge_cams(maps, image_labels, size, out_size)
    return reference.cam_to_label(cams, image_labels, boxes, high, low, ignore_index)


def _roi_reference(maps, image_labels, size, out_size, high, low):
    maps = [x.to(accumulate_dtype(x.dtype)) for x in maps]
    return reference.cam_to_roi(reference.merge_cams(maps, image_labels, size, out_size), image_labels, high, low)


def _like(maps, *shape, dtype=None):
    return maps[0].new_empty((len(maps[0]) // 2, *shape), dtype=dtype)


_merge = define(
    "merge_cams(Tensor[] maps, Tensor? image_labels, SymInt[] size, SymInt[] out_size) -> Tensor",
    room="cam",
    reference=_merge_reference,
    fake=lambda maps, image_labels, size, out_size: _like(maps, maps[0].shape[1], *out_size),
)
_merge_to_labels = define(
    "merge_cams_to_labels(Tensor[] maps, Tensor image_labels, Tensor? boxes, SymInt[] size, SymInt[] out_size, "
    "float high, float low, int ignore_index) -> Tensor",
    room="cam",
    reference=_label_reference,
    fake=lambda maps, image_labels, boxes, size, out_size, *_: _like(maps, *out_size, dtype=torch.int64),
)
_merge_to_roi = define(
    "merge_cams_to_roi(Tensor[] maps, Tensor image_labels, SymInt[] size, SymInt[] out_size, float high, float low)"
    " -> Tensor",
    room="cam",
    reference=_roi_reference,
    fake=lambda maps, image_labels, size, out_size, *_: _like(maps, *out_size, dtype=torch.uint8),
)


def merge_cams(
    maps: Sequence[Tensor],  # each (2B, C, h_s, w_s)
    size: tuple[int, int],
    image_labels: Tensor | None = None,  # (B, C)
    *,
    out_size: tuple[int, int] | None = None,
) -> Tensor:  # (B, C, *out_size)
    """The normalised CAM from the small maps of all scales, of the images and of their mirror images.

    With x_s the maps of the images at scale s, x'_s those of the mirrored images, and ↑ bilinear interpolation to
    `size` without aligned corners:

        m   = Σ_s relu(max(↑x_s, mirror(↑x'_s)))
        cam = (m - min m) / (max (m - min m) + 1e-5)                   per image and class, over its pixels

    No map of full size is stored but the result. With `out_size` that one is not stored either: the result is what
    bilinear interpolation of the full CAM to `out_size` gives. Half of `size` in both directions is what
    `refine_cam_labels` starts from, the number of patches what labels of patches need.

    Args:
        maps: for each scale (2B, C, h_s, w_s), first those of the images, then those of the mirrored images, in the
            same order; float32, float64, float16 or bfloat16. Not differentiable.
        size: (H, W), the size of the images.
        image_labels: (B, C) multi-hot without background, any dtype: absent classes are 0 in the result, and their
            maps are never read. None: all classes.
        out_size: the size of the result; None: `size`.

    Returns:
        (B, C, *out_size) in [0, 1], in the dtype of the maps.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, or a size is not positive.

    See also `merge_cams_to_labels` and `merge_cams_to_roi`, for those who need no CAM.

    Source: ToCo (Ru et al., CVPR 2023), `multi_scale_cam2` in its code.
    """
    maps = _checked_maps(maps)
    for x in maps:
        check_constant(x, "maps", "the published training merges CAMs without one")
    size, out_size = _checked_sizes(size, out_size)
    if image_labels is not None:
        image_labels = checked_image_labels(image_labels, len(maps[0]) // 2, maps[0].shape[1], maps[0], "maps")
    return _merge(maps, image_labels, size, out_size)


@torch.no_grad()
def merge_cams_to_labels(
    maps: Sequence[Tensor],  # each (2B, C, h_s, w_s)
    size: tuple[int, int],
    image_labels: Tensor,  # (B, C)
    *,
    high: float,
    low: float,
    boxes: Tensor | None = None,  # (B, 4)
    ignore_index: int = 255,
    out_size: tuple[int, int] | None = None,
) -> Tensor:  # (B, *out_size)
    """`cam_to_label(merge_cams(maps, size, image_labels, out_size=out_size), image_labels, …)` without the CAM.

    Args:
        maps, size, image_labels, out_size: as for `merge_cams`.
        high, low, ignore_index: as for `cam_to_label`.
        boxes: as for `cam_to_label`, in pixels of the result: for labels of patches, `patch_boxes(boxes, patch)`.

    Returns:
        (B, *out_size) int64 labels.

    Raises:
        TypeError, ValueError: as `merge_cams` and `cam_to_label`.
    """
    maps = _checked_maps(maps)
    size, out_size = _checked_sizes(size, out_size)
    batch = len(maps[0]) // 2
    return _merge_to_labels(
        maps,
        checked_image_labels(image_labels, batch, maps[0].shape[1], maps[0], "maps"),
        checked_boxes(boxes, batch, maps[0], "maps"),
        size,
        out_size,
        number(high, "high"),
        number(low, "low"),
        integer(ignore_index, "ignore_index", least=-(2**31)),
    )


@torch.no_grad()
def merge_cams_to_roi(
    maps: Sequence[Tensor],  # each (2B, C, h_s, w_s)
    size: tuple[int, int],
    image_labels: Tensor,  # (B, C)
    *,
    high: float,
    low: float,
    out_size: tuple[int, int] | None = None,
) -> Tensor:  # (B, *out_size)
    """`cam_to_roi(merge_cams(maps, size, image_labels, out_size=out_size), image_labels, …)` without the CAM.

    Args:
        maps, size, image_labels, out_size: as for `merge_cams`.
        high, low: as for `cam_to_roi`.

    Returns:
        (B, *out_size) uint8 regions.

    Raises:
        TypeError, ValueError: as `merge_cams` and `cam_to_roi`.
    """
    maps = _checked_maps(maps)
    size, out_size = _checked_sizes(size, out_size)
    image_labels = checked_image_labels(image_labels, len(maps[0]) // 2, maps[0].shape[1], maps[0], "maps")
    return _merge_to_roi(maps, image_labels, size, out_size, number(high, "high"), number(low, "low"))


def _checked_maps(maps: Sequence[Tensor]) -> list[Tensor]:
    if not isinstance(maps, (list, tuple)):
        raise bad_type("maps", "be a sequence of tensors", type(maps).__name__)
    if not maps:
        raise bad_value("maps", "have at least one scale", "none")
    first = maps[0]
    for x in maps:
        check_tensor(x, "maps", 4, "(2B, C, h, w)")
        check_floating(x, "maps")
        check_same_device(x, "maps", first, "the first of maps")
        if x.dtype != first.dtype:
            raise bad_type("maps", "have one dtype", f"{first.dtype} and {x.dtype}")
        if x.shape[:2] != first.shape[:2]:
            raise bad_value("maps", "agree in batch and classes", f"shapes {tuple(first.shape)} and {tuple(x.shape)}")
        if 0 in x.shape[1:]:
            raise bad_value("maps", "have at least one class and one pixel", f"shape {tuple(x.shape)}")
    if len(first) % 2:
        raise bad_value("maps", "hold the images and as many mirrored ones", f"a batch of {len(first)}")
    return [*maps]


def _checked_sizes(size: Sequence[int], out_size: Sequence[int] | None) -> tuple[list[int], list[int]]:
    size = _checked_size(size, "size")
    return size, size if out_size is None else _checked_size(out_size, "out_size")


def _checked_size(size: Sequence[int], argument: str) -> list[int]:
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise bad_value(argument, "be (height, width)", repr(size))
    return [integer(n, argument, least=1) for n in size]
