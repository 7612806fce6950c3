"""affinity_propagate on NVIDIA GPUs of compute capability 8.0 and later, in Triton.

Launchers with the signatures of the operators. Shapes and grids depend on the shapes of the inputs alone, so nothing
waits for the GPU and everything can be captured in a CUDA graph; no sum depends on which program ends first. Never
measured.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..common.triton_precision import dot_precision
from . import reference
from .triton_attention import gather_kernel, softmax_kernel, sums_kernel
from .triton_walk import affinity_kernel, sums_of_weights_kernel, walk_kernel

TILE = {"BLOCK_I": 64, "BLOCK_J": 32, "BLOCK_D": 32, "num_warps": 8, "num_stages": 2}
MOST_CLASSES = 32  # of a tile
PROGRAMS = 256  # about so many share the work where there is little: sums are split into parts for them
WALK = {"BLOCK": 128, "BLOCK_C": 4, "num_warps": 4}
PAIRS = {"BLOCK": 256, "num_warps": 4}


@dataclass
class _Attention:
    """The attention matrix A (B, N, N) as its products with something, each one pass over its tiles."""

    queries: Tensor  # (B, heads, N, D)
    keys: Tensor  # (B, heads, N, D): those of patches
    largest: Tensor  # (B, heads, N)
    shares: Tensor  # (B, heads, N)

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor) -> "_Attention":
        """Keys (B, heads, K, D), of which the last N are the patches'."""
        batch, heads, patches, width = queries.shape
        count = keys.shape[2]
        largest, shares = (_new(queries, batch, heads, patches) for _ in range(2))
        softmax_kernel[(triton.cdiv(patches, TILE["BLOCK_I"]), heads, batch)](
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
            width**-0.5,
            PRECISION=dot_precision(queries.dtype),
            **TILE,
        )
        return cls(queries, keys[:, :, count - patches :], largest, shares)

    def maps(self, maps: Tensor, *, by_keys: bool = False) -> Tensor:  # (B, C, N) -> (B, C, N)
        """A x of every map x;  by keys: Aᵀ x."""
        batch, classes, _ = maps.shape
        block = min(MOST_CLASSES, max(16, triton.next_power_of_2(classes)))
        class_blocks = triton.cdiv(classes, block)
        blocks, parts, arguments = self._launch(class_blocks, by_keys)
        gathered = _new(maps, parts, *maps.shape)
        gather_kernel[(blocks, parts * class_blocks, batch)](
            *arguments,
            maps,
            gathered,
            classes,
            BLOCK_C=block,
            BY_KEYS=by_keys,
            PRECISION=dot_precision(self.queries.dtype),
            MAP_PRECISION=dot_precision(),
            **TILE,
        )
        return gathered.sum(dim=0)

    def sums(self, weights: Tensor, *, by_keys: bool = False) -> Tensor:  # (B, N) -> (B, N) float64
        """A x of one vector x;  by keys: Aᵀ x."""
        blocks, parts, arguments = self._launch(1, by_keys)
        sums = _new(weights, parts, *weights.shape, dtype=torch.float64)
        sums_kernel[(blocks, parts, len(weights))](
            *arguments, weights, sums, BY_KEYS=by_keys, PRECISION=dot_precision(self.queries.dtype), **TILE
        )
        return sums.sum(dim=0)

    def _launch(self, class_blocks: int, by_keys: bool) -> tuple[int, int, tuple]:
        """Blocks of patches, parts of their sums, and the arguments of a pass."""
        batch, heads, patches, width = self.queries.shape
        own, others = (triton.cdiv(patches, TILE[side]) for side in ("BLOCK_I", "BLOCK_J"))
        if by_keys:
            own, others = others, own
        each = triton.cdiv(others, max(1, PROGRAMS // (own * class_blocks * batch)))
        queries, keys = (self.queries, *self.queries.stride()), (self.keys, *self.keys.stride())
        sizes = patches, heads, width, width**-0.5, each
        return own, triton.cdiv(others, each), (*queries, *keys, self.largest, self.shares, *sizes)


def propagate_attention(
    cams: Tensor,  # (B, C, N)
    queries: Tensor,  # (B, heads, N, D)
    keys: Tensor,  # (B, heads, K, D)
    steps: int,
    sinkhorn: int,
) -> Tensor:  # (B, C, N) float32
    """A launch for the softmax, two for each round of its scaling, then one for each step, or two with scaling.

    Every pass computes the products of queries and keys again: they are what is quadratic.
    """
    batch, heads, patches, width = queries.shape
    classes, count = cams.shape[1], keys.shape[2]
    torch._check(cams.shape == (batch, classes, patches), lambda: "cams must be (B, C, N), of the queries' B and N")
    torch._check(keys.shape == (batch, heads, count, width), lambda: "keys must have the queries' batch, heads, width")
    torch._check(count >= patches, lambda: "keys must be as many as queries, or more")
    for x in (queries, keys):
        torch._check(x.device == cams.device and x.dtype == cams.dtype, lambda: "all must have one device and dtype")
    maps = cams.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if maps.numel() == 0 or steps == 0:
        return maps
    attention = _Attention.of(queries, keys)
    rows = maps.new_ones(batch, patches)
    for _ in range(sinkhorn):
        columns = (1 / attention.sums(rows, by_keys=True)).float()
        rows = (1 / attention.sums(columns)).float()
    for _ in range(steps):
        if sinkhorn:
            there = rows[:, None] * attention.maps(columns[:, None] * maps)
            maps = (there + columns[:, None] * attention.maps(rows[:, None] * maps, by_keys=True)) / 2
        else:
            maps = attention.maps(maps)
    return maps


def random_walk(
    edges: Tensor,  # (B, 1 or P, H, W)
    cams: Tensor,  # (B, C, H, W)
    radius: int,
    beta: float,
    steps: int,
) -> Tensor:  # (B, C, H, W) float32
    """A launch for each step, after those for the weights: of every image, P numbers for each pixel."""
    batch, classes, height, width = cams.shape
    pairs, pixels = len(reference.offsets(radius)), height * width
    torch._check(
        edges.shape in ((batch, 1, height, width), (batch, pairs, height, width)),
        lambda: "edges must have one channel, or one for each pair, and the size of cams",
    )
    torch._check(
        edges.device == cams.device and edges.dtype == cams.dtype, lambda: "all must have one device and dtype"
    )
    maps = cams.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if edges.shape[1] == 1:
        maps *= 1 - edges.float()
    if maps.numel() == 0 or steps == 0 or pairs == 0:
        return maps
    stencil, size = {"RADIUS": radius, "PAIRS": pairs}, (height, width)
    blocks = triton.cdiv(pixels, PAIRS["BLOCK"])
    if edges.shape[1] == 1:
        weights, cells = _new(maps, batch, pairs, height, width), radius * (2 * radius - 1)
        affinity_kernel[(blocks, cells, batch)](
            edges.contiguous(), weights, *size, CELLS=triton.next_power_of_2(cells), **stencil, **PAIRS
        )
        weights.pow_(beta)
    else:
        weights = edges.float().pow(beta).contiguous()
    sums, scales = (_new(maps, batch, height, width) for _ in range(2))
    sums_of_weights_kernel[(blocks, batch)](weights, sums, scales, *size, **stencil, **PAIRS)
    walked = torch.empty_like(maps)
    grid = triton.cdiv(pixels, WALK["BLOCK"]), triton.cdiv(classes, WALK["BLOCK_C"]), batch
    for _ in range(steps):
        walk_kernel[grid](maps, weights, sums, scales, walked, classes, *size, **stencil, **WALK)
        maps, walked = walked, maps
    return maps


def _new(like: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)
