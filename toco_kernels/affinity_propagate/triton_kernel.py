"""affinity_propagate on NVIDIA GPUs of compute capability 8.0 and later, in Triton.

Launchers with the signatures of the operators. Nothing waits for the GPU, shapes depend on those of the inputs alone,
and no sum depends on which program ends first: all of it can be captured in a CUDA graph.
"""

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from . import reference
from .triton_attention import gather_kernel, softmax_kernel, sums_kernel
from .triton_walk import walk_kernel

TILE = {"BLOCK_I": 64, "BLOCK_J": 64, "BLOCK_D": 32, "num_warps": 4, "num_stages": 2}
WALK = {"BLOCK": 128, "BLOCK_C": 4, "num_warps": 4}


def propagate_attention(
    cams: Tensor,  # (B, C, N)
    queries: Tensor,  # (B, heads, N, D)
    keys: Tensor,  # (B, heads, K, D)
    steps: int,
    sinkhorn: int,
) -> Tensor:  # (B, C, N) float32
    """One launch for the softmax, 2 · sinkhorn for its scaling, then one for each step, or two with scaling."""
    batch, heads, patches, width = queries.shape
    classes, count = cams.shape[1], keys.shape[2]
    torch._check(cams.shape == (batch, classes, patches), lambda: "cams must be (B, C, N), of the queries' B and N")
    torch._check(keys.shape == (batch, heads, count, width), lambda: "keys must have the queries' batch, heads, width")
    torch._check(count >= patches, lambda: "keys must be as many as queries, or more")
    for x in (queries, keys):
        torch._check(x.device == cams.device and x.dtype == cams.dtype, lambda: "all must have one device and dtype")
    maps = cams.float().contiguous()
    if maps.numel() == 0 or steps == 0:
        return maps.clone()
    largest, shares = (maps.new_empty(batch, heads, patches) for _ in range(2))
    blocks, scale, precision = triton.cdiv(patches, TILE["BLOCK_I"]), width**-0.5, _precision(cams.dtype)
    softmax_kernel[(blocks, batch * heads)](
        queries,
        *queries.stride(),
        keys,
        *keys.stride(),
        largest,
        shares,
        patches,
        count,
        heads,
        width,
        scale,
        PRECISION=precision,
        **TILE,
    )
    keys = keys[:, :, count - patches :]

    def sides(transposed: bool):
        left, right = (keys, queries) if transposed else (queries, keys)
        return left, *left.stride(), right, *right.stride(), largest, shares

    def gather(maps: Tensor, *, transposed: bool) -> Tensor:
        gathered, block = torch.empty_like(maps), 32 if classes > 16 else 16
        gather_kernel[(blocks, triton.cdiv(classes, block), batch)](
            *sides(transposed),
            maps,
            gathered,
            patches,
            heads,
            classes,
            width,
            scale,
            BLOCK_C=block,
            TRANSPOSED=transposed,
            PRECISION=precision,
            MAP_PRECISION=_precision(torch.float32),
            **TILE,
        )
        return gathered

    def inverse_sums(weights: Tensor, *, transposed: bool) -> Tensor:
        inverses = torch.empty_like(weights)
        sums_kernel[(blocks, batch)](
            *sides(transposed),
            weights,
            inverses,
            patches,
            heads,
            width,
            scale,
            TRANSPOSED=transposed,
            PRECISION=precision,
            **TILE,
        )
        return inverses

    rows = maps.new_ones(batch, patches)
    for _ in range(sinkhorn):
        columns = inverse_sums(rows, transposed=True)
        rows = inverse_sums(columns, transposed=False)
    for _ in range(steps):
        if sinkhorn:
            there = rows[:, None] * gather(columns[:, None] * maps, transposed=False)
            maps = (there + columns[:, None] * gather(rows[:, None] * maps, transposed=True)) / 2
        else:
            maps = gather(maps, transposed=False)
    return maps


def random_walk(
    edges: Tensor,  # (B, 1 or P, H, W)
    cams: Tensor,  # (B, C, H, W)
    radius: int,
    beta: float,
    steps: int,
) -> Tensor:  # (B, C, H, W) float32
    """A launch for each step, after those of PyTorch that make the weights."""
    batch, classes, height, width = cams.shape
    found = reference.offsets(radius)
    torch._check(
        edges.shape in ((batch, 1, height, width), (batch, len(found), height, width)),
        lambda: "edges must have one channel, or one for each pair, and the size of cams",
    )
    torch._check(edges.device == cams.device and edges.dtype == cams.dtype, lambda: "all must have one device and dtype")
    edges, maps = edges.float(), cams.float().contiguous()
    if edges.shape[1] == 1:
        edges, maps = reference.pair_affinities(edges, radius), maps * (1 - edges)
    if maps.numel() == 0 or steps == 0 or not found:
        return maps.clone()
    halo = radius - 1
    padding = halo, halo, halo, halo
    stride = width + 2 * halo
    weights = torch.zeros_like(edges)  # of pairs inside the image; the others' stay zero
    for k, (y, x) in enumerate(found):
        pairs = (slice(None), k, slice(0, max(height - y, 0)), slice(max(-x, 0), max(width - max(x, 0), max(-x, 0))))
        weights[pairs] = edges[pairs] ** beta
    weights = F.pad(weights, padding).flatten(2)
    step_sizes = [y * stride + x for y, x in found]
    first = halo * stride + halo
    last = first + (height - 1) * stride + width
    sums = weights[..., first:last].sum(dim=1, dtype=torch.float64)
    for k, step in enumerate(step_sizes):
        sums += weights[:, k, first - step : last - step]
    size = weights.shape[2]
    inside = F.pad(maps.new_ones(height, width), padding).flatten()
    sums = F.pad(sums, (first, size - last))
    scales = (inside / (1 + sums)).float()
    sums = (inside * sums).float()
    maps = F.pad(maps, padding).flatten(2)
    walked = torch.zeros_like(maps)
    grid = triton.cdiv(last - first, WALK["BLOCK"]), triton.cdiv(classes, WALK["BLOCK_C"]), batch
    for _ in range(steps):
        walk_kernel[grid](maps, weights, sums, scales, walked, classes, first, last, stride, size, len(found), radius, **WALK)
        maps, walked = walked, maps
    planes = maps.unflatten(2, (height + 2 * halo, stride))
    return planes[:, :, halo : halo + height, halo : halo + width].contiguous()


def _precision(dtype: torch.dtype) -> str:
    """How products of float32 are computed: as exactly as float32, unless PyTorch was told that TF32 is enough."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
