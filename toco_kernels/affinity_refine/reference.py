"""What affinity_refine means, in plain PyTorch: the published sequence of operations, never optimised."""

import torch
import torch.nn.functional as F
from torch import Tensor


def neighbours(x: Tensor, dilations: list[int], *, centre: bool = False) -> Tensor:
    """(B, C, H, W) -> (B, C, 8 * len(dilations), H, W): one-hot convolutions of the replicate-padded planes.

    Row by row, without the centre; `centre=True` keeps it, as the fifth of nine.
    """
    batch, channels, height, width = x.shape
    taps = [tap for tap in range(9) if centre or tap != 4]
    kernel = torch.eye(9, dtype=x.dtype, device=x.device)[taps].view(len(taps), 1, 3, 3)
    gathered = []
    for d in dilations:
        padded = F.pad(x, [d] * 4, mode="replicate").view(batch * channels, 1, height + 2 * d, width + 2 * d)
        gathered.append(F.conv2d(padded, kernel, dilation=d).view(batch, channels, len(taps), height, width))
    return torch.cat(gathered, dim=2)


def par_affinity(image: Tensor, dilations: list[int]) -> Tensor:
    """image (B, colours, H, W) -> weights (B, 1, P, H, W) that sum to 1.01."""
    around = neighbours(image, dilations)
    difference = (around - image.unsqueeze(2)).abs()
    deviation = around.std(dim=2, keepdim=True)
    by_colour = -((difference / (deviation + 1e-8) / 0.3) ** 2).mean(dim=1, keepdim=True)

    ring = [2**0.5, 1, 2**0.5, 1, 1, 2**0.5, 1, 2**0.5]
    distance = torch.tensor([d * r for d in dilations for r in ring], dtype=image.dtype, device=image.device)
    by_distance = -((distance / (distance.std() + 1e-8) / 0.3) ** 2)
    return by_colour.softmax(dim=2) + 0.01 * by_distance.softmax(dim=0).view(1, 1, -1, 1, 1)


def pamr_affinity(image: Tensor, dilations: list[int]) -> Tensor:
    """image (B, colours, H, W) -> weights (B, 1, P, H, W) that sum to 1."""
    difference = (neighbours(image, dilations) - image.unsqueeze(2)).abs()
    deviation = neighbours(image, dilations, centre=True).std(dim=2, keepdim=True)
    by_colour = -(difference / (1e-8 + 0.1 * deviation)).mean(dim=1, keepdim=True)
    return by_colour.softmax(dim=2)


AFFINITY = {"par": par_affinity, "pamr": pamr_affinity}


def affinity_refine(
    image: Tensor,  # (B, colours, H, W)
    masks: Tensor,  # (B, C, H, W)
    dilations: list[int],
    iterations: int,
    kind: str,
) -> Tensor:  # (B, C, H, W)
    """The formula of the room's docstring."""
    weights = AFFINITY[kind](image, dilations)
    for _ in range(iterations):
        masks = (neighbours(masks, dilations) * weights).sum(dim=2)
    return masks


def refined_scores(
    image: Tensor,  # (colours, H, W)
    cams: Tensor,  # (C, H, W)
    background: Tensor,  # (H, W)
    present: Tensor,  # (n) indices of classes
    down_scale: int,
    dilations: list[int],
    iterations: int,
    kind: str,
) -> Tensor:  # (1 + n, H, W)
    """Refined softmax scores of one image's background and present classes, with one score of the background."""
    height, width = cams.shape[1:]
    small = [height // down_scale, width // down_scale]
    channels = torch.cat([background[None], cams[present]])
    image, channels = (
        F.interpolate(x[None], size=small, mode="bilinear", align_corners=False) for x in (image, channels)
    )
    refined = affinity_refine(image, channels.softmax(dim=1), dilations, iterations, kind)
    return F.interpolate(refined, size=[height, width], mode="bilinear", align_corners=False)[0]


def refine_cam_labels(
    image: Tensor,  # (B, colours, H, W)
    cams: Tensor,  # (B, C, H, W)
    image_labels: Tensor,  # (B, C)
    boxes: Tensor | None,  # (B, 4)
    high: Tensor,  # (B, H, W)
    low: Tensor,  # (B, H, W)
    ignore_index: int,
    down_scale: int,
    dilations: list[int],
    iterations: int,
    kind: str,
    max_classes: int,
) -> Tensor:  # (B, H, W)
    """Each image refined twice, with a high and a low score of the background; their labels agree or are ignored."""
    labels = torch.full((cams.shape[0], *cams.shape[2:]), ignore_index, dtype=torch.int64, device=cams.device)
    for b in range(len(labels)):
        present = image_labels[b].nonzero()[:, 0]
        present = present if max_classes < 0 else present[:max_classes]
        classes = torch.cat([present.new_zeros(1), present + 1])
        with_high, with_low = (
            classes[
                refined_scores(
                    image[b], cams[b], background[b], present, down_scale, dilations, iterations, kind
                ).argmax(dim=0)
            ]
            for background in (high, low)
        )
        label = with_high.clone()
        label[with_high == 0] = ignore_index
        label[(with_high == 0) & (with_low == 0)] = 0
        box = [slice(None)] * 2 if boxes is None else [slice(*boxes[b, :2].tolist()), slice(*boxes[b, 2:].tolist())]
        labels[b][tuple(box)] = label[tuple(box)]
    return labels
