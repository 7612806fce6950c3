"""Triton kernels of propagate_attention: tiles of the attention matrix, made, multiplied and dropped.

A first pass finds each query's largest score and sum of exponentials. With these known, the heads of a tile can be added
before the tile is multiplied with the maps, which then happens once for all heads; and the transposed matrix, which
Sinkhorn's scaling needs, is as cheap as the matrix itself. Predicted, never measured: bound by the products of queries
and keys, which every pass repeats.
"""

import triton
import triton.language as tl


@triton.jit
def load_tokens(
    tokens,  # of one image and head
    stride_n,
    stride_d,
    n,  # (BLOCK)
    count,
    d,  # (BLOCK_D)
    width,
):
    """Some channels of some tokens, zero beyond the last of either."""
    mask = (n < count)[:, None] & (d < width)[None, :]
    return tl.load(tokens + n.to(tl.int64)[:, None] * stride_n + d[None, :] * stride_d, mask=mask, other=0)


@triton.jit
def scores_of(
    left,
    left_stride_n,
    left_stride_d,
    i,
    left_count,
    right,
    right_stride_n,
    right_stride_d,
    j,
    right_count,
    width,
    scale,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """<left[i], right[j]> * scale."""
    s = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    for first in range(0, width, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        a = load_tokens(left, left_stride_n, left_stride_d, i, left_count, d, width)
        b = load_tokens(right, right_stride_n, right_stride_d, j, right_count, d, width)
        s = tl.dot(a, tl.trans(b), s, input_precision=PRECISION)
    return s * scale


@triton.jit(do_not_specialize=["patches", "count", "heads"])
def softmax_kernel(
    queries,
    query_stride_b,
    query_stride_h,
    query_stride_n,
    query_stride_d,
    keys,
    key_stride_b,
    key_stride_h,
    key_stride_n,
    key_stride_d,
    largest,  # (B, heads, N) float32: each query's largest score
    shares,  # (B, heads, N) float32: 1 / (heads * the sum of exponentials)
    patches,
    count,  # of keys
    heads,
    width,
    scale,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The softmax of some queries of a head."""
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    head, image = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    queries += image * query_stride_b + head * query_stride_h
    keys += image * key_stride_b + head * key_stride_h
    high = tl.full([BLOCK_I], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_I], tl.float32)
    for first in range(0, count, BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        s = scores_of(
            queries,
            query_stride_n,
            query_stride_d,
            i,
            patches,
            keys,
            key_stride_n,
            key_stride_d,
            j,
            count,
            width,
            scale,
            BLOCK_I,
            BLOCK_J,
            BLOCK_D,
            PRECISION,
        )
        s = tl.where((j < count)[None, :], s, float("-inf"))
        higher = tl.maximum(high, tl.max(s, axis=1))
        total = total * tl.exp(high - higher) + tl.sum(tl.exp(s - higher[:, None]), axis=1)
        high = higher
    place = (image * heads + head) * patches + i
    tl.store(largest + place, high, mask=i < patches)
    tl.store(shares + place, 1 / (total * heads), mask=i < patches)


@triton.jit
def tile_of(
    left,  # of one image
    left_stride_h,
    left_stride_n,
    left_stride_d,
    i,
    right,
    right_stride_h,
    right_stride_n,
    right_stride_d,
    j,
    largest,  # of one image
    shares,
    patches,
    heads,
    width,
    scale,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention of queries i to keys j, the mean of the heads; transposed: of queries j to keys i. 0 beyond the last."""
    tile = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    for head in range(heads):
        s = scores_of(
            left + head.to(tl.int64) * left_stride_h,
            left_stride_n,
            left_stride_d,
            i,
            patches,
            right + head.to(tl.int64) * right_stride_h,
            right_stride_n,
            right_stride_d,
            j,
            patches,
            width,
            scale,
            BLOCK_I,
            BLOCK_J,
            BLOCK_D,
            PRECISION,
        )
        if TRANSPOSED:
            high = tl.load(largest + head * patches + j, mask=j < patches, other=0)[None, :]
            share = tl.load(shares + head * patches + j, mask=j < patches, other=0)[None, :]
        else:
            high = tl.load(largest + head * patches + i, mask=i < patches, other=0)[:, None]
            share = tl.load(shares + head * patches + i, mask=i < patches, other=0)[:, None]
        tile += tl.exp(s - high) * share
    return tl.where((i < patches)[:, None] & (j < patches)[None, :], tile, 0.0)


@triton.jit(do_not_specialize=["patches", "heads", "classes"])
def gather_kernel(
    left,
    left_stride_b,
    left_stride_h,
    left_stride_n,
    left_stride_d,
    right,
    right_stride_b,
    right_stride_h,
    right_stride_n,
    right_stride_d,
    largest,  # (B, heads, N)
    shares,  # (B, heads, N)
    maps,  # (B, C, N) float32
    gathered,  # (B, C, N) float32
    patches,
    heads,
    classes,
    width,
    scale,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    MAP_PRECISION: tl.constexpr,
):
    """gathered[c, i] = sum over j of tile[i, j] * maps[c, j]."""
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = tl.program_id(2).to(tl.int64)
    left += image * left_stride_b
    right += image * right_stride_b
    largest += image * heads * patches
    shares += image * heads * patches
    maps += (image * classes + c.to(tl.int64)) * patches
    total = tl.zeros([BLOCK_I, BLOCK_C], tl.float32)
    for first in range(0, patches, BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        tile = tile_of(
            left,
            left_stride_h,
            left_stride_n,
            left_stride_d,
            i,
            right,
            right_stride_h,
            right_stride_n,
            right_stride_d,
            j,
            largest,
            shares,
            patches,
            heads,
            width,
            scale,
            BLOCK_I,
            BLOCK_J,
            BLOCK_D,
            TRANSPOSED,
            PRECISION,
        )
        score = tl.load(maps[None, :] + j[:, None], mask=(j < patches)[:, None] & (c < classes)[None, :], other=0)
        total = tl.dot(tile, score, total, input_precision=MAP_PRECISION)
    gathered += (image * classes + c.to(tl.int64)) * patches
    tl.store(gathered[None, :] + i[:, None], total, mask=(i < patches)[:, None] & (c < classes)[None, :])


@triton.jit(do_not_specialize=["patches", "heads"])
def sums_kernel(
    left,
    left_stride_b,
    left_stride_h,
    left_stride_n,
    left_stride_d,
    right,
    right_stride_b,
    right_stride_h,
    right_stride_n,
    right_stride_d,
    largest,  # (B, heads, N)
    shares,  # (B, heads, N)
    weights,  # (B, N) float32
    inverses,  # (B, N) float32
    patches,
    heads,
    width,
    scale,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """inverses[i] = 1 / sum over j of tile[i, j] * weights[j]: a tile's sum in float32, of the tiles in float64."""
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    image = tl.program_id(1).to(tl.int64)
    left += image * left_stride_b
    right += image * right_stride_b
    largest += image * heads * patches
    shares += image * heads * patches
    total = tl.zeros([BLOCK_I], tl.float64)
    for first in range(0, patches, BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        tile = tile_of(
            left,
            left_stride_h,
            left_stride_n,
            left_stride_d,
            i,
            right,
            right_stride_h,
            right_stride_n,
            right_stride_d,
            j,
            largest,
            shares,
            patches,
            heads,
            width,
            scale,
            BLOCK_I,
            BLOCK_J,
            BLOCK_D,
            TRANSPOSED,
            PRECISION,
        )
        weight = tl.load(weights + image * patches + j, mask=j < patches, other=0)
        total += tl.sum(tile * weight[None, :], axis=1).to(tl.float64)
    tl.store(inverses + image * patches + i, (1 / total).to(tl.float32), mask=i < patches)
