"""Class maps along attention, as N × N products or as attention; and a random walk, by matrices or as a stencil."""

import torch
import torch.nn.functional as F
from harness import Bench, Case

from toco_kernels import propagate_attention, random_walk
from toco_kernels.affinity_propagate import reference


def attention_inputs(generator, *, batch, side, heads=1, width=64, classes=20, steps=1, sinkhorn=0):
    """Maps in [0, 1], and queries and keys whose scores spread as a transformer's do."""
    patches = side * side
    queries, keys = (torch.randn(batch, heads, patches, width, generator=generator) for _ in range(2))
    cams = torch.rand(batch, classes, patches, generator=generator)
    return {"cams": cams, "queries": queries, "keys": keys, "steps": steps, "sinkhorn": sinkhorn}


def attention_flop(direction, *, cams, queries, keys, steps, sinkhorn):
    """Scores of every head anew in each pass, and the maps."""
    batch, heads, patches, width = queries.shape
    passes = steps * (2 if sinkhorn else 1) + 2 * sinkhorn
    return passes * 2 * batch * heads * patches**2 * (width + cams.shape[1])


def attention_rewrite(cams, queries, keys, steps, sinkhorn):
    """Attention whose values are the maps, so that no matrix is made; with Sinkhorn's scaling the matrix is faster."""
    if sinkhorn:
        moves = reference.transition(queries, keys, sinkhorn)
        for _ in range(steps):
            cams = cams @ moves.mT
        return cams
    for _ in range(steps):
        values = cams.mT[:, None].expand(-1, queries.shape[1], -1, -1)
        cams = F.scaled_dot_product_attention(queries, keys, values).mean(dim=1).mT
    return cams.contiguous()


ATTENTION = Bench(
    room="affinity_propagate",
    op="propagate_attention",
    providers={
        "toco_kernels": propagate_attention,
        "published": reference.propagate_attention,
        "rewrite": attention_rewrite,
    },
    inputs=attention_inputs,
    flop=attention_flop,
    tiny={"batch": 1, "side": 4, "width": 8, "classes": 3},
    cases=[
        Case("N = 784, two steps", {"batch": 4, "side": 28, "steps": 2}, decisive=True),
        Case("N = 3136, two steps", {"batch": 1, "side": 56, "steps": 2}, decisive=True),
        Case("N = 784, twelve heads", {"batch": 4, "side": 28, "heads": 12}, decisive=True),
        Case("N = 784, CLIP-ES", {"batch": 4, "side": 28, "steps": 2, "sinkhorn": 3}, decisive=True),
        Case("N = 3136, CLIP-ES", {"batch": 1, "side": 56, "steps": 2, "sinkhorn": 3}),
    ],
)


def walk_inputs(generator, *, batch, height, width, classes=20, radius=5, steps=256):
    """Edges as IRN predicts them: mostly none, some lines; maps in [0, 1]."""
    coarse = torch.rand(batch, 1, 8, 8, generator=generator)
    edges = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1) ** 4
    cams = torch.rand(batch, classes, height, width, generator=generator)
    return {"edges": edges, "cams": cams, "radius": radius, "beta": 8.0, "steps": steps}


def walk_flop(direction, *, edges, cams, radius, beta, steps):
    """A product and a sum for each pixel, class and neighbour."""
    return steps * cams.numel() * 2 * (2 * len(reference.offsets(radius)) + 1)


def walk_rewrite(edges, cams, radius, beta, steps):
    """The transition matrix as a sparse one, made of its affinities alone, and one product for each step."""
    height, width = cams.shape[2:]
    weights = reference.pair_affinities(edges, radius) ** beta
    pixels = torch.arange(height * width, device=edges.device).view(height, width)
    places, starts, ends = [], [], []
    for k, (y, x) in enumerate(reference.offsets(radius)):
        rows, columns = slice(0, max(height - y, 0)), slice(max(-x, 0), max(width - max(x, 0), max(-x, 0)))
        places.append((k, rows, columns))
        starts.append(pixels[rows, columns].flatten())
        ends.append(starts[-1] + y * width + x)
    start, end, own = torch.cat(starts), torch.cat(ends), pixels.flatten()
    indices = torch.stack([torch.cat([start, end, own]), torch.cat([end, start, own])])
    walked = []
    for image, weight in zip((cams * (1 - edges)).flatten(2), weights, strict=True):
        values = torch.cat([weight[place].flatten() for place in places])
        values = torch.cat([values, values, torch.ones_like(own, dtype=values.dtype)])
        totals = torch.zeros_like(own, dtype=values.dtype).index_add_(0, indices[0], values)
        values = values / totals[indices[0]]
        matrix = torch.sparse_coo_tensor(indices, values, (own.numel(), own.numel())).to_sparse_csr()
        x = image.mT.contiguous()
        for _ in range(steps):
            x = matrix @ x
        walked.append(x.mT)
    return torch.stack(walked).view(cams.shape)


def walk_stencil(edges, cams, radius, beta, steps):
    """No matrix: in each step every neighbour's map, shifted, times its weight. Rows have a margin of zeros between
    them and lie one after the other, so that a shift is one offset and each product runs over a whole map. Neighbours
    are added up row by row: 69 in one sum round the same way in every step, which adds up.
    """
    (batch, classes, height, width), reach = cams.shape, radius - 1
    row = width + reach
    count, margin = height * row, reach * row + reach
    inside = slice(margin, margin + count)
    weights = F.pad(reference.pair_affinities(edges, radius) ** beta, (0, reach)).flatten(2)
    taps = {0: [(0, torch.ones_like(weights[:, :1]))]}  # row -> offset, weight
    for k, (y, x) in enumerate(reference.offsets(radius)):
        by, weight = y * row + x, weights[:, k : k + 1]
        taps.setdefault(y, []).append((by, weight))
        taps.setdefault(-y, []).append((-by, F.pad(weight, (by, 0))[..., :count]))
    total = sum(weight.double() for of_row in taps.values() for _, weight in of_row)
    taps = [[(by, (weight / total).to(cams.dtype)) for by, weight in of_row] for of_row in taps.values()]
    now, after = cams.new_zeros(2, batch, classes, count + 2 * margin)
    now[..., inside] = F.pad(cams * (1 - edges), (0, reach)).flatten(2)
    for _ in range(steps):
        maps = after[..., inside].zero_()
        for (first, first_weight), *others in taps:
            part = now[..., margin + first : margin + first + count] * first_weight
            for by, weight in others:
                part.addcmul_(now[..., margin + by : margin + by + count], weight)
            maps.add_(part)
        now, after = after, now
    return now[..., inside].unflatten(2, (height, row))[..., :width].contiguous()


WALK = Bench(
    room="affinity_propagate",
    op="random_walk",
    providers={
        "toco_kernels": random_walk,
        "published": reference.random_walk,
        "rewrite": walk_rewrite,
        "stencil": walk_stencil,
    },
    inputs=walk_inputs,
    flop=walk_flop,
    tiny={"batch": 1, "height": 6, "width": 5, "classes": 2, "steps": 4},
    cases=[
        Case("64 x 48, radius 5, 256 steps", {"batch": 1, "height": 64, "width": 48}, decisive=True),
        Case("32 x 32, radius 5, 256 steps", {"batch": 4, "height": 32, "width": 32}),
    ],
)


@ATTENTION.every_case
def test_propagate_attention(case, direction, compare):
    compare(ATTENTION, case, direction)


@WALK.every_case
def test_random_walk(case, direction, compare):
    compare(WALK, case, direction)
