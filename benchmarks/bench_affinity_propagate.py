"""Class maps along attention, as N × N products or as attention; and a random walk, dense or as a stencil."""

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
    """The transition matrix as a sparse one, one product for each step; it is made dense once, as published."""
    moves = [
        m.mT.to_sparse_csr() for m in reference.walk_matrix(reference.pair_affinities(edges, radius), radius, beta)
    ]
    walked = []
    for image, matrix in zip((cams * (1 - edges)).flatten(2), moves, strict=True):
        x = image.mT.contiguous()
        for _ in range(steps):
            x = matrix @ x
        walked.append(x.mT)
    return torch.stack(walked).view(cams.shape)


WALK = Bench(
    room="affinity_propagate",
    op="random_walk",
    providers={"toco_kernels": random_walk, "published": reference.random_walk, "rewrite": walk_rewrite},
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
