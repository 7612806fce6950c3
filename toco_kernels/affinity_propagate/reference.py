"""What affinity_propagate means, in plain PyTorch: the published sequence of operations, never optimised."""

import torch
import torch.nn.functional as F
from torch import Tensor


def transition(
    queries: Tensor,  # (B, heads, N, D)
    keys: Tensor,  # (B, heads, K, D), K >= N
    sinkhorn: int,
) -> Tensor:  # (B, N, N)
    """The mean attention of the heads, to the last N keys; normalised by columns and rows in turn, made symmetric."""
    attention = (queries @ keys.mT * queries.shape[3] ** -0.5).softmax(dim=3).mean(dim=1)
    moves = attention[:, :, keys.shape[2] - queries.shape[2] :]
    for _ in range(sinkhorn):
        moves = moves / moves.sum(dim=1, keepdim=True)
        moves = moves / moves.sum(dim=2, keepdim=True)
    return (moves + moves.mT) / 2 if sinkhorn else moves


def propagate_attention(
    cams: Tensor,  # (B, C, N)
    queries: Tensor,  # (B, heads, N, D)
    keys: Tensor,  # (B, heads, K, D)
    steps: int,
    sinkhorn: int,
) -> Tensor:  # (B, C, N)
    """Scores times a power of the transition matrix."""
    return cams @ torch.linalg.matrix_power(transition(queries, keys, sinkhorn), steps).mT


def offsets(radius: int) -> list[tuple[int, int]]:
    """The (y, x) of neighbours within a radius, one of each pair: 34 for a radius of 5."""
    level = [(0, x) for x in range(1, radius)]
    below = [(y, x) for y in range(1, radius) for x in range(1 - radius, radius) if x * x + y * y < radius * radius]
    return level + below


def path(offset: tuple[int, int]) -> list[tuple[int, int]]:
    """The pixels between a pixel and its neighbour, both included: those less than 1 away from the line."""
    y, x = offset
    box = [(v, u) for v in range(y + 1) for u in range(min(x, 0), max(x, 0) + 1)]
    return [(v, u) for v, u in box if (y * u - x * v) ** 2 < y * y + x * x]


def shifted(maps: Tensor, y: int, x: int, fill: float) -> Tensor:
    """maps[..., v + y, u + x] at (v, u), `fill` where that is outside; y >= 0."""
    height, width = maps.shape[-2:]
    reach = abs(x)
    padded = F.pad(maps, (reach, reach, 0, y), value=fill)
    return padded[..., y : y + height, reach + x : reach + x + width]


def pair_affinities(edges: Tensor, radius: int) -> Tensor:
    """Edges (B, 1, H, W) -> affinities (B, P, H, W): 1 less the strongest edge between a pixel and its neighbour."""
    found = [1 - torch.stack([shifted(edges[:, 0], *step, 1.0) for step in path(o)]).amax(0) for o in offsets(radius)]
    return torch.stack(found, dim=1) if found else edges[:, :0]


def walk_matrix(
    affinities: Tensor,  # (B, P, H, W)
    radius: int,
    beta: float,
) -> Tensor:  # (B, H * W, H * W)
    """Each column holds the weights of one pixel's neighbours and of itself, and sums to 1."""
    batch, _, height, width = affinities.shape
    dense = torch.eye(height * width, dtype=affinities.dtype, device=affinities.device).repeat(batch, 1, 1)
    pixels = torch.arange(height * width, device=affinities.device).view(height, width)
    for k, (y, x) in enumerate(offsets(radius)):
        rows, columns = slice(0, max(height - y, 0)), slice(max(-x, 0), max(width - max(x, 0), max(-x, 0)))
        start = pixels[rows, columns].flatten()
        end = start + y * width + x
        dense[:, start, end] = dense[:, end, start] = affinities[:, k, rows, columns].flatten(1)
    weights = dense**beta
    return weights / weights.sum(dim=1, keepdim=True)


def random_walk(
    edges: Tensor,  # (B, 1, H, W) edges, or (B, P, H, W) affinities
    cams: Tensor,  # (B, C, H, W)
    radius: int,
    beta: float,
    steps: int,
) -> Tensor:  # (B, C, H, W)
    """Scores, less those on edges, times a power of the dense transition matrix."""
    affinities = edges
    if edges.shape[1] == 1:
        affinities, cams = pair_affinities(edges, radius), cams * (1 - edges)
    walked = cams.flatten(2) @ torch.linalg.matrix_power(walk_matrix(affinities, radius, beta), steps)
    return walked.view(cams.shape)


def component_boxes(
    cams: Tensor,  # (B, C, H, W)
    threshold: float,
) -> Tensor:  # (B, C, H, W) bool
    """The union of the bounding boxes of connected regions above a threshold, by flooding."""
    height, width = cams.shape[2:]
    if cams.numel() == 0:
        return torch.zeros(cams.shape, dtype=torch.bool, device=cams.device)
    above = cams > threshold * cams.amax(dim=(2, 3), keepdim=True)
    y = torch.arange(height, device=cams.device)[:, None].expand(height, width)
    x = torch.arange(width, device=cams.device).expand(height, width)
    extremes = torch.stack([y, -y, x, -x]).to(torch.float32)  # the largest of these in a region are its box
    extremes = torch.where(above[:, :, None], extremes, -float("inf"))
    while True:
        flooded = F.max_pool2d(extremes.flatten(0, 2), 3, stride=1, padding=1).view(extremes.shape)
        flooded = torch.where(above[:, :, None], flooded, -float("inf"))
        if torch.equal(flooded, extremes):
            break
        extremes = flooded
    boxes = torch.zeros_like(above)
    for b, c, v, u in above.nonzero().tolist():
        y1, y0, x1, x0 = (int(e) for e in extremes[b, c, :, v, u])
        boxes[b, c, -y0 : y1 + 1, -x0 : x1 + 1] = True
    return boxes
