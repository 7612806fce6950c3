"""AffinityNet's training step and its walk as published: what the module is compared with. Never optimised.

It uses the parameters of an `AffinityNet` and nothing else of it. Features of both ends of all pairs are gathered, and
the walk multiplies with a dense matrix of N × N pixels, squared where the number of steps is a power of two.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .criterion import EPSILON, AffinityNetOutput
from .module import AffinityNet


def indices(height: int, width: int, radius: int, inner_pairs: bool) -> list[tuple[Tensor, Tensor, tuple[int, int]]]:
    """Where pairs begin and end, in the flattened map, for every neighbour: found one pixel at a time."""
    found = []
    for y in range(radius):
        for x in range(1 - radius, radius):
            if (y, x) <= (0, 0) or y * y + x * x >= radius * radius:
                continue
            starts, ends = [], []
            for v in range(height):
                for u in range(width):
                    reach = radius - 1
                    begins = not inner_pairs or (v < height - reach and reach <= u < width - reach)
                    if begins and v + y < height and 0 <= u + x < width:
                        starts.append(v * width + u)
                        ends.append((v + y) * width + u + x)
            found.append((torch.tensor(starts, dtype=torch.int64), torch.tensor(ends, dtype=torch.int64), (y, x)))
    return found


def features(model: AffinityNet, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, D, h, w)
    """The network's."""
    low, middle, top = model.backbone.network(images)
    joined = torch.cat([F.elu(model.low(low)), F.elu(model.middle(middle)), F.elu(model.top(top))], dim=1)
    return F.elu(model.joint(joined))


def published_step(
    model: AffinityNet,
    images: Tensor,  # (B, 3, H, W)
    image_labels: Tensor | None = None,
    *,
    views: Mapping[str, Tensor],
    boxes: Tensor | None = None,
    step: int = 0,
) -> AffinityNetOutput:
    """What `model.forward` computes, in the published order.

    Args:
        model: whose parameters are used.
        images, image_labels, views, boxes, step: as for `AffinityNet.forward`.
    """
    config = model.config
    maps = features(model, images)
    batch, _, height, width = maps.shape
    pixels, labels = maps.flatten(2), views["labels"].flatten(1)
    affinities, kinds = [], {name: [] for name in config.weights}
    grid = maps.new_zeros(batch, 0, height, width)
    for starts, ends, _ in indices(height, width, config.radius, config.inner_pairs):
        starts, ends = starts.to(maps.device), ends.to(maps.device)
        affinity = torch.exp(-torch.mean(torch.abs(pixels[:, :, ends] - pixels[:, :, starts]), dim=1))
        affinities.append(affinity)
        start, end = labels[:, starts], labels[:, ends]
        valid, same = (start < 255) & (end < 255), start == end
        kinds["background"].append(valid & same & (start == 0))
        kinds["foreground"].append(valid & same & (start != 0))
        kinds["negative"].append(valid & ~same)
        plane = maps.new_zeros(batch, height * width).index_copy(1, starts, affinity)
        grid = torch.cat([grid, plane.view(batch, 1, height, width)], dim=1)
    affinity = torch.cat(affinities, dim=1)
    losses = {}
    for name, chosen in kinds.items():
        chosen = torch.cat(chosen, dim=1).to(affinity.dtype)
        inside = 1.0 + EPSILON - affinity if name == "negative" else affinity + EPSILON
        losses[name] = torch.sum(-chosen * torch.log(inside)) / (torch.sum(chosen) + EPSILON)
    return AffinityNetOutput(sum(config.weights[name] * losses[name] for name in losses), losses, grid)


@torch.no_grad()
def published_walk(
    model: AffinityNet,
    images: Tensor,  # (B, 3, H, W)
    maps: Tensor,  # (B, K, H, W)
) -> Tensor:  # (B, K, H, W)
    """What `model.walk` computes, with dense matrices."""
    config, (height, width) = model.config, images.shape[2:]
    right, below = -width % 8, -height % 8
    images = F.pad(images, (0, right, 0, below))
    pixels = features(model, images)
    rows, columns = pixels.shape[2:]
    pooled = F.avg_pool2d(F.pad(maps, (0, right, 0, below)), 8, 8)
    walked = []
    for b in range(len(images)):
        x = pixels[b].flatten(1)
        matrix = torch.eye(rows * columns, dtype=x.dtype, device=x.device)
        for starts, ends, _ in indices(rows, columns, config.radius, config.inner_pairs):
            affinity = torch.exp(-torch.mean(torch.abs(x[:, ends] - x[:, starts]), dim=0))
            matrix[starts, ends] = matrix[ends, starts] = affinity
        matrix = matrix**config.beta
        matrix = torch.linalg.matrix_power(matrix / matrix.sum(dim=0, keepdim=True), config.walk_steps)
        walked.append((pooled[b].flatten(1).to(x.dtype) @ matrix).view(-1, rows, columns))
    walked = torch.stack(walked).to(maps.dtype)
    return F.interpolate(walked, size=images.shape[2:], mode="bilinear", align_corners=False)[..., :height, :width]
