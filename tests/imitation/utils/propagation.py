"""Maps that spread along attention, as in CLIP-ES and ExCEL, and along edges, as in IRN. Boxes without OpenCV."""

import torch
import torch.nn.functional as F


def compute_trans_mat(attn_weight):
    moves = attn_weight
    for _ in range(3):
        for dim in (0, 1):
            moves = moves / moves.sum(dim=dim, keepdim=True)
    moves = (moves + moves.t()) / 2
    return moves @ moves


def boxes(scores, threshold):
    steps = (scores * 255).floor()
    above = steps > int(threshold * steps.max())
    inside = torch.zeros_like(scores)
    while above.any():
        region = torch.zeros_like(above)
        y, x = above.nonzero()[0]
        region[y, x] = True
        while True:
            grown = F.max_pool2d(region[None].float(), 3, 1, 1)[0].bool() & above
            if torch.equal(grown, region):
                break
            region = grown
        above = above & ~region
        rows, columns = (region.any(dim=dim).nonzero()[:, 0] for dim in (1, 0))
        bottom, right = (min(n[-1] + 1, size - 1) for n, size in zip((rows, columns), scores.shape))
        inside[rows[0] : bottom, columns[0] : right] = 1
    return inside


def refine_cams_with_aff(attr_map, attn_weights, cls_label, size, caa_thre=0.79, attn_layers=6, seg_attn=None):
    grid = [n // 16 for n in size]
    layers = attn_weights[:, 1:, 1:][-attn_layers:].detach()
    attention = layers.mean(0)
    if seg_attn is not None:
        lacking = (seg_attn - layers).sum(dim=(1, 2))
        counted = lacking <= lacking.mean()
        attention = layers[counted].sum(0) / (counted.sum() + 1e-5) * seg_attn[0]
    moves, classes, refined = compute_trans_mat(attention).float(), torch.where(cls_label)[0], []
    for c in classes:
        cam = attr_map[:, c].reshape(grid)
        refined.append(((moves * boxes(cam, caa_thre).flatten()) @ cam.flatten()).reshape(grid))
    return refined, classes.detach().cpu()


def between(y, x):
    corners = [(v, u) for v in range(y + 1) for u in range(min(x, 0), max(x, 0) + 1)]
    return [(v, u) for v, u in corners if (y * u - x * v) ** 2 < y * y + x * x]


def propagate_to_edge(x, edge, radius=5, beta=10, exp_times=8):
    height, width = x.shape[-2:]
    edge = edge.reshape(height, width)
    affinity = torch.eye(height * width)
    for dy in range(radius):
        for dx in range(1 - radius, radius):
            if dy * dy + dx * dx >= radius * radius or (dy == 0 and dx <= 0):
                continue
            for v in range(height - dy):
                for u in range(max(0, -dx), min(width, width - dx)):
                    strongest = max(edge[v + p, u + q] for p, q in between(dy, dx))
                    i, j = v * width + u, (v + dy) * width + u + dx
                    affinity[i, j] = affinity[j, i] = 1 - strongest
    moves = affinity**beta
    moves = torch.linalg.matrix_power(moves / moves.sum(dim=0, keepdim=True), 2**exp_times)
    return ((x.view(-1, height, width) * (1 - edge)).flatten(1) @ moves).view(-1, 1, height, width)
