"""What the CAM operators mean, in plain PyTorch: the published sequence of operations, never optimised."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5  # beside the largest value of a map, which may be 0
SURELY_NEGATIVE = 0.2  # crops whose mean region is at most this show background


def merge_cams(
    maps: Sequence[Tensor],  # (2B, C, h_s, w_s): images, then their mirror images
    image_labels: Tensor | None,  # (B, C), not 0 where present; None: all are
    size: Sequence[int],
    out_size: Sequence[int],
) -> Tensor:  # (B, C, *out_size)
    """The formula of the room's docstring, then absent classes cleared and the result resized."""
    batch = len(maps[0]) // 2
    scales = []
    for x in maps:
        x = F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
        scales.append(torch.max(x[:batch], x[batch:].flip(-1)).relu())
    cams = torch.stack(scales).sum(dim=0)
    cams = cams - cams.amin(dim=(2, 3), keepdim=True)
    cams = cams / (cams.amax(dim=(2, 3), keepdim=True) + EPSILON)
    if image_labels is not None:
        cams = present_cams(cams, image_labels)
    return F.interpolate(cams, size=tuple(out_size), mode="bilinear", align_corners=False)


def present_cams(
    cams: Tensor,  # (B, C, H, W)
    image_labels: Tensor,  # (B, C), not 0 where present
) -> Tensor:  # (B, C, H, W)
    """The CAMs of present classes, 0 elsewhere."""
    return cams.masked_fill((image_labels == 0)[:, :, None, None], 0)


def cam_to_label(
    cams: Tensor,  # (B, C, H, W)
    image_labels: Tensor,  # (B, C)
    boxes: Tensor | None,  # (B, 4)
    high: float | Tensor,  # Tensor: (B, H, W)
    low: float | Tensor,
    ignore_index: int,
) -> Tensor:  # (B, H, W)
    """The class with the largest CAM where that is above `high`, background where it is not above `low`."""
    value, label = present_cams(cams, image_labels).max(dim=1)
    label += 1
    label[value <= high] = ignore_index
    label[value <= low] = 0
    if boxes is None:
        return label
    in_box = torch.full_like(label, ignore_index)
    for b, (y0, y1, x0, x1) in enumerate(boxes.tolist()):
        in_box[b, y0:y1, x0:x1] = label[b, y0:y1, x0:x1]
    return in_box


def cam_to_roi(
    cams: Tensor,  # (B, C, H, W)
    image_labels: Tensor,  # (B, C)
    high: float,
    low: float,
) -> Tensor:  # (B, H, W) uint8
    """0 background, 1 uncertain, 2 object."""
    value = present_cams(cams, image_labels).amax(dim=1)
    roi = torch.ones_like(value, dtype=torch.uint8)
    roi[value <= low] = 0
    roi[value >= high] = 2
    return roi


def crop_uncertain(
    images: Tensor,  # (B, channels, H, W)
    roi: Tensor,  # (B, H, W)
    draws: Tensor,  # (B, crops) in [0, 1)
    size: int,
) -> tuple[Tensor, Tensor]:  # (crops, B, channels, size, size), (B, crops)
    """Crops around pixels drawn without replacement, as the first of a random permutation are."""
    (batch, channels, height, width), crops, margin = images.shape, draws.shape[1], size // 2
    cut = images.new_empty(crops, batch, channels, size, size)
    flags = images.new_ones(batch, crops)
    for b in range(batch):
        window = roi[b, margin : height - margin, margin : width - margin]
        left = (window <= 1).nonzero()
        if len(left) < crops:
            left = (window >= 0).nonzero()
        for i, draw in enumerate(draws[b].tolist()):
            draw = min(draw, 1.0) if draw > 0 else 0.0  # NaN too
            chosen = min(int(draw * len(left)), len(left) - 1)
            y, x = left[chosen].tolist()
            left = torch.cat([left[:chosen], left[chosen + 1 :]])
            cut[i, b] = images[b, :, y : y + size, x : x + size]
            if roi[b, y : y + size, x : x + size].sum() / (size * size) <= SURELY_NEGATIVE:
                flags[b, i] = 0
    return cut, flags


def segmentation_loss(
    logits: Tensor,  # (B, C, H, W)
    labels: Tensor,  # (B, H, W)
    ignore_index: int,
) -> Tensor:  # ()
    """Background and objects, half each. Ignored logits are cleared first: their NaN would reach the gradient."""
    logits = logits.masked_fill((labels == ignore_index)[:, None], 0)
    loss = 0
    for other_half in (labels != 0, labels == 0):
        half = labels.masked_fill(other_half, ignore_index)
        total = F.cross_entropy(logits, half, ignore_index=ignore_index, reduction="sum")
        loss += total / (half != ignore_index).sum().clamp(min=1)
    return loss * 0.5
