"""CAMs, their labels and crops, under the names of ToCo, AFA and the repositories grown from them.

What is published is kept, quirks included: boxes are applied as they are, also boxes in pixels to labels on a patch
grid; image labels multiply CAMs; crops are drawn by `torch.randperm` on the CPU. Boxes and regions may be on another
device than the rest, as in the published training. Under CUDA autocast, merged CAMs are in the dtype of the model's
maps.
"""

from collections.abc import Callable, Iterator, Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cam import cam_to_label as _cam_to_label
from ..cam import cam_to_roi as _cam_to_roi
from ..cam import merge_cams
from ..cam.reference import SURELY_NEGATIVE
from ..common.errors import bad_type, bad_value
from .boxes import stacked_boxes

__all__ = [
    "cam_to_label",
    "cam_to_roi_mask2",
    "crop_from_roi_neg",
    "get_valid_cam",
    "ignore_img_box",
    "multi_scale_cam",
    "multi_scale_cam2",
    "multi_scale_cam_with_aff_mat",
]


@torch.no_grad()
def _at_scales(
    model: Callable,
    inputs: Tensor,  # (B, 3, H, W)
    scales: Sequence[float],
) -> Iterator[Sequence[Tensor]]:
    """What the model returns at each scale; the scale 1 comes first, whether it is listed or not."""
    for scale in (1.0, *(scale for scale in scales if scale != 1.0)):
        x = inputs
        if scale != 1.0:
            size = [int(scale * n) for n in inputs.shape[2:]]
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        yield model(torch.cat([x, x.flip(-1)], dim=0), cam_only=True)


def _merged(
    model: Callable,
    inputs: Tensor,  # (B, 3, H, W)
    scales: Sequence[float],
    outputs: Sequence[int],
) -> list[Tensor]:  # (B, C, H, W) each
    """Merged CAMs from these of the model's outputs."""
    maps = [[found[output] for output in outputs] for found in _at_scales(model, inputs, scales)]
    return [merge_cams(of_scales, tuple(inputs.shape[2:])) for of_scales in zip(*maps, strict=True)]


def multi_scale_cam2(
    model: Callable,
    inputs: Tensor,  # (B, 3, H, W)
    scales: Sequence[float],
) -> tuple[Tensor, Tensor]:  # (B, C, H, W), (B, C, H, W)
    """The CAM and the auxiliary CAM of ToCo's network: `toco_kernels.merge_cams` of what it gives at several scales.

    Args:
        model: called as `model(images, cam_only=True)`, for the images and their mirror images together; returns the
            auxiliary maps and the maps, (2B, C, h, w).
        inputs: (B, 3, H, W).
        scales: of the inputs. The scale 1 is always used, and used once.

    Returns:
        The CAM and the auxiliary CAM, (B, C, H, W) in [0, 1], without a gradient.
    """
    cam, cam_aux = _merged(model, inputs, scales, (1, 0))
    return cam, cam_aux


def multi_scale_cam(
    model: Callable,
    inputs: Tensor,  # (B, 3, H, W)
    scales: Sequence[float],
    *,
    aux: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # (B, C, H, W)
    """The CAM of AFA's network, or with `aux=True` both CAMs of FSR's: `toco_kernels.merge_cams`.

    Args:
        model: called as `model(images, cam_only=True)`, for the images and their mirror images together; the first of
            what it returns are the maps, (2B, C, h, w), the second in FSR the auxiliary maps.
        inputs: (B, 3, H, W).
        scales: of the inputs. The scale 1 is always used, and used once.
        aux: return the auxiliary CAM too, as FSR's function of this name does.

    Returns:
        (B, C, H, W) in [0, 1], without a gradient, or two of these.
    """
    if aux:
        cam, cam_aux = _merged(model, inputs, scales, (0, 1))
        return cam, cam_aux
    return _merged(model, inputs, scales, (0,))[0]


def multi_scale_cam_with_aff_mat(
    model: Callable,
    inputs: Tensor,  # (B, 3, H, W)
    scales: Sequence[float],
) -> tuple[Tensor, Tensor]:  # (B, C, H, W), (2B, N, N)
    """The CAM of AFA's network, as `multi_scale_cam`, and the affinities that it gave at the largest scale.

    Args:
        model: called as `model(images, cam_only=True)`, for the images and their mirror images together; returns the
            maps, (2B, C, h, w), and affinities, (2B, N, N).
        inputs: (B, 3, H, W).
        scales: of the inputs. The scale 1 is always used, and used once, and first. As published, affinities are those
            of the place that the largest scale has in this list: it should hold the scale 1 before the largest.

    Returns:
        The CAM, (B, C, H, W) in [0, 1], without a gradient, and affinities, (2B, N, N), of the images and then of their
        mirror images.

    Source: `multi_scale_cam_with_aff_mat` of AFA, WeCLIP and ExCEL.
    """
    largest, maps = [*scales].index(max(scales)), []
    for i, (cam, affinities) in enumerate(_at_scales(model, inputs, scales)):
        maps.append(cam)
        if i == largest:  # the others, of N x N numbers each, are not kept
            kept = affinities
    return merge_cams(maps, tuple(inputs.shape[2:])), kept


def get_valid_cam(
    cam: Tensor,  # (B, C, H, W)
    cls_label: Tensor,  # (B, C)
) -> Tensor:  # (B, C, H, W)
    """CAMs times image labels."""
    return cls_label[:, :, None, None] * cam


def ignore_img_box(
    label: Tensor,  # (B, H, W), any dtype
    img_box: Tensor | Sequence,  # (B, 4), on any device
    ignore_index: int,
) -> Tensor:  # (B, H, W)
    """The labels inside of the boxes, `ignore_index` outside."""
    boxes = stacked_boxes(img_box, label.device)
    inside = label.new_ones((), dtype=torch.bool)
    for bounds, dim in ((boxes[:, :2], 1), (boxes[:, 2:], 2)):
        size = label.shape[dim]
        first, last = torch.where(bounds < 0, bounds + size, bounds).clamp(0, size).unbind(1)  # as slices do
        position = torch.arange(size, device=label.device)
        within = (first[:, None] <= position) & (position < last[:, None])
        inside = inside & within.unsqueeze(3 - dim)
    return label.masked_fill(~inside, ignore_index)


@torch.no_grad()
def cam_to_label(
    cam: Tensor,  # (B, C, H, W)
    cls_label: Tensor,  # (B, C)
    img_box: Tensor | Sequence | None = None,  # (B, 4), on any device
    bkg_thre: float | Tensor | None = None,
    high_thre: float | Tensor | None = None,
    low_thre: float | Tensor | None = None,
    ignore_mid: bool = False,
    ignore_index: int | None = None,
    *,
    cfg=None,
    always_pair: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # (B, H, W), or (B, C, H, W) and (B, H, W)
    """Labels from CAMs by thresholds. All published forms are understood:

        cam_to_label(cam, cls_label, img_box, bkg_thre=…, high_thre=…, low_thre=…, ignore_mid=…, ignore_index=…)
        cam_to_label(cam, cls_label, img_box, ignore_mid, cfg)             # AFA, WeCLIP, ExCEL; also by keyword
        cam_to_label(…, always_pair=True)                                  # MoRe, FSR

    With v the largest of cls_label * cam at a pixel, and c its class: the label is 0 where v <= bkg_thre, else c + 1;
    with `ignore_mid`, afterwards, `ignore_index` where v <= high_thre and 0 where v <= low_thre. Outside of the box it
    is `ignore_index`. Without a box neither of the two happens, and the labels come alone. In the form of MoRe and FSR,
    `bkg_thre` counts only without `ignore_mid`, which works without a box too, and there is always a pair.

    Args:
        cam: (B, C, H, W).
        cls_label: (B, C), by which CAMs are multiplied.
        img_box: B boxes y0, y1, x0, x1, as a tensor or a sequence, applied to the labels as they are.
        bkg_thre, high_thre, low_thre: numbers, or tensors that broadcast to (B, H, W).
        ignore_mid: whether there are labels in doubt.
        ignore_index: the label of pixels in doubt.
        cfg: holds cam.bkg_score, cam.high_thre, cam.low_thre and dataset.ignore_index, in place of the four arguments.
        always_pair: the form of MoRe and FSR.

    Returns:
        (B, H, W) int64 labels; with a box, or with `always_pair`, after (B, C, H, W), the CAMs times the labels,
        without a gradient.
    """
    if hasattr(high_thre, "cam"):  # (…, img_box, ignore_mid, cfg) by position
        cfg, ignore_mid = high_thre, bkg_thre
    if cfg is not None:
        bkg_thre, high_thre, low_thre = cfg.cam.bkg_score, cfg.cam.high_thre, cfg.cam.low_thre
        ignore_index = cfg.dataset.ignore_index
    in_doubt = bool(ignore_mid) and (always_pair or img_box is not None)
    needed = {"high_thre": high_thre, "low_thre": low_thre} if in_doubt else {}
    if not (in_doubt and always_pair):
        needed["bkg_thre"] = bkg_thre
    if in_doubt or img_box is not None:
        needed["ignore_index"] = ignore_index
    for name, value in needed.items():
        if value is None:
            raise bad_type(name, "be given", value)

    valid_cam = get_valid_cam(cam, cls_label)
    background = None if in_doubt and always_pair else bkg_thre
    high, low = (high_thre, low_thre) if in_doubt else (background, background)
    boxes = None if img_box is None else stacked_boxes(img_box, cam.device)
    ignore_index = 0 if ignore_index is None else int(ignore_index)
    if all(limit is None or isinstance(limit, Real) for limit in (background, high, low)) and (
        background is None or background <= high
    ):
        present = torch.ones_like(cls_label)  # valid_cam holds what labels make of absent classes
        labels = _cam_to_label(valid_cam, present, high=high, low=low, boxes=boxes, ignore_index=ignore_index)
    else:
        labels = _labels_in_order(valid_cam, background, high if in_doubt else None, low, boxes, ignore_index)
    return (valid_cam, labels) if always_pair or img_box is not None else labels


def _labels_in_order(valid_cam, background, high, low, boxes, ignore_index) -> Tensor:  # (B, H, W)
    """The published sequence, for thresholds that are tensors, and for a background above the high one."""
    value, label = valid_cam.max(dim=1)
    label += 1
    if background is not None:
        label.masked_fill_(value <= background, 0)
    if high is not None:
        label.masked_fill_(value <= high, ignore_index).masked_fill_(value <= low, 0)
    return label if boxes is None else ignore_img_box(label, boxes, ignore_index)


@torch.no_grad()
def cam_to_roi_mask2(
    cam: Tensor,  # (B, C, H, W)
    cls_label: Tensor,  # (B, C)
    hig_thre: float | None = None,
    low_thre: float | None = None,
) -> Tensor:  # (B, H, W)
    """Regions from CAMs: `toco_kernels.cam_to_roi` of cls_label * cam, in int16. `hig_thre` is their spelling."""
    for name, value in (("hig_thre", hig_thre), ("low_thre", low_thre)):
        if value is None:
            raise bad_type(name, "be given", value)
    valid_cam = get_valid_cam(cam, cls_label)
    return _cam_to_roi(valid_cam, torch.ones_like(cls_label), high=hig_thre, low=low_thre).to(torch.int16)


@torch.no_grad()
def crop_from_roi_neg(
    images: Tensor,  # (B, channels, H, W)
    roi_mask: Tensor | None = None,  # (B, H, W), on any device
    crop_num: int = 8,
    crop_size: int = 96,
) -> tuple[list[Tensor], Tensor]:  # crop_num of (B, channels, crop_size, crop_size), (B, crop_num + 2)
    """Crops around pixels that are not surely part of an object: with a seed of torch, those of the published code.

    They are drawn on the CPU by `torch.randperm` of as many numbers as there are candidates, so a region on a GPU is
    waited for, once. `toco_kernels.crop_uncertain` draws on the device and waits for nothing.

    Args:
        images: (B, channels, H, W), on any device.
        roi_mask: (B, H, W) 0 background, 1 uncertain, 2 object.
        crop_num: crops of each image.
        crop_size: their size in pixels.

    Returns:
        A list of crop_num tensors (B, channels, crop_size, crop_size), and flags (B, crop_num + 2), of which the first
        two, for the global crops, are 1. Both are float32, on the device of the images.

    Raises:
        TypeError, ValueError: `roi_mask` is missing, or there are fewer places than crops.
    """
    if roi_mask is None:
        raise bad_type("roi_mask", "be given", roi_mask)
    (batch, channels, height, width), margin = images.shape, crop_size // 2
    roi = roi_mask.cpu()
    crops = torch.zeros(batch, crop_num, channels, crop_size, crop_size, device=images.device)
    flags = torch.ones(batch, crop_num + 2)
    for b in range(batch):
        window = roi[b, margin : height - margin, margin : width - margin]
        places = (window <= 1).nonzero()
        if len(places) < crop_num:
            places = (window >= 0).nonzero()
        if len(places) < crop_num:
            raise bad_value("crop_num", f"be at most {len(places)}, the number of places for crops", crop_num)
        for i, (y, x) in enumerate(places[torch.randperm(len(places))[:crop_num]].tolist()):
            crops[b, i] = images[b, :, y : y + crop_size, x : x + crop_size]
            if roi[b, y : y + crop_size, x : x + crop_size].sum() / (crop_size * crop_size) <= SURELY_NEGATIVE:
                flags[b, i + 2] = 0
    return [*crops.unbind(1)], flags.to(images.device)
