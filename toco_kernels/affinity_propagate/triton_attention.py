"""Triton kernels of propagate_attention: tiles of the attention matrix, made, multiplied and dropped.

A first pass finds each query's largest score and sum of exponentials. With these known, the heads of a tile can be
added before it is multiplied with the maps, which happens once for all heads, and columns of the matrix, which
Sinkhorn's scaling needs, cost what its rows do.

Every pass makes tiles in the same way, queries by keys, so that a score is the same to the bit in all of them: of
scores in the hundreds, the exponential would show a difference in their last digit.
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
def products_of(
    queries,  # of one image and head
    query_stride_n,
    query_stride_d,
    i,  # (BLOCK_I)
    patches,
    keys,  # of one image and head
    key_stride_n,
    key_stride_d,
    j,  # (BLOCK_J)
    count,
    width,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """<queries[i], keys[j]>."""
    s = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    for first in range(0, width, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        a = load_tokens(queries, query_stride_n, query_stride_d, i, patches, d, width)
        b = load_tokens(keys, key_stride_n, key_stride_d, j, count, d, width)
        s = tl.dot(a, tl.trans(b), s, input_precision=PRECISION)
    return s


@triton.jit(do_not_specialize=["patches", "count", "heads"])
def softmax_kernel(
    queries,  # (B, heads, N, D)
    query_stride_b,
    query_stride_h,
    query_stride_n,
    query_stride_d,
    keys,  # (B, heads, K, D)
    key_stride_b,
    key_stride_h,
    key_stride_n,
    key_stride_d,
    largest,  # (B, heads, N) float32: each query's largest product
    shares,  # (B, heads, N) float32: 1 / (heads * its sum of exponentials)
    patches,
    count,  # of keys
    heads,
    width,
    scale,  # of products, > 0
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The softmax of some queries of a head."""
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    queries += image * query_stride_b + head.to(tl.int64) * query_stride_h
    keys += image * key_stride_b + head.to(tl.int64) * key_stride_h
    high = tl.full([BLOCK_I], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_I], tl.float32)
    for first in range(0, count, BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        s = products_of(
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
            BLOCK_I,
            BLOCK_J,
            BLOCK_D,
            PRECISION,
        )
        s = tl.where((j < count)[None, :], s, float("-inf"))
        higher = tl.maximum(high, tl.max(s, axis=1))
        total = total * tl.exp((high - higher) * scale) + tl.sum(tl.exp((s - higher[:, None]) * scale), axis=1)
        high = higher
    place = (image * heads + head) * patches + i
    tl.store(largest + place, high, mask=i < patches)
    tl.store(shares + place, 1 / (total * heads), mask=i < patches)


@triton.jit
def tile_of(
    queries,  # of one image
    query_stride_h,
    query_stride_n,
    query_stride_d,
    i,  # (BLOCK_I)
    keys,  # of one image: those of patches
    key_stride_h,
    key_stride_n,
    key_stride_d,
    j,  # (BLOCK_J)
    largest,  # of one image
    shares,
    patches,
    heads,
    width,
    scale,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention of queries i to keys j, the mean of the heads; 0 beyond the last of either."""
    tile = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    inside = i < patches
    for _ in range(heads):
        s = products_of(
            queries,
            query_stride_n,
            query_stride_d,
            i,
            patches,
            keys,
            key_stride_n,
            key_stride_d,
            j,
            patches,
            width,
            BLOCK_I,
            BLOCK_J,
            BLOCK_D,
            PRECISION,
        )
        high = tl.load(largest + i, mask=inside, other=0)
        share = tl.load(shares + i, mask=inside, other=0)
        tile += tl.exp((s - high[:, None]) * scale) * share[:, None]
        queries += query_stride_h
        keys += key_stride_h
        largest += patches
        shares += patches
    return tl.where(inside[:, None] & (j < patches)[None, :], tile, 0.0)


@triton.jit(do_not_specialize=["patches", "heads", "classes", "each"])
def gather_kernel(
    queries,  # (B, heads, N, D)
    query_stride_b,
    query_stride_h,
    query_stride_n,
    query_stride_d,
    keys,  # (B, heads, N, D)
    key_stride_b,
    key_stride_h,
    key_stride_n,
    key_stride_d,
    largest,  # (B, heads, N)
    shares,  # (B, heads, N)
    patches,
    heads,
    width,
    scale,
    each,  # blocks that a program sums over
    maps,  # (B, C, N) float32
    gathered,  # (parts, B, C, N) float32
    classes,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BY_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    MAP_PRECISION: tl.constexpr,
):
    """gathered[c, i] = Σ_j A[i, j] maps[c, j];  by keys: gathered[c, j] = Σ_i A[i, j] maps[c, i].

    Tensor cores round what they add up towards zero, which is a bias in a long sum of positive terms: tiles are added
    outside of them.
    """
    class_blocks = tl.cdiv(classes, BLOCK_C)
    OWN: tl.constexpr = BLOCK_J if BY_KEYS else BLOCK_I
    OTHER: tl.constexpr = BLOCK_I if BY_KEYS else BLOCK_J
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)
    c = tl.program_id(1) % class_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    part, image = tl.program_id(1) // class_blocks, tl.program_id(2).to(tl.int64)
    queries += image * query_stride_b
    keys += image * key_stride_b
    largest += image * heads * patches
    shares += image * heads * patches
    plane = image * classes + c.to(tl.int64)
    total = tl.zeros([OWN, BLOCK_C], tl.float32)
    for first in range(part * each * OTHER, tl.minimum((part + 1) * each * OTHER, patches), OTHER):
        other = first + tl.arange(0, OTHER)
        tile = tile_of(
            queries,
            query_stride_h,
            query_stride_n,
            query_stride_d,
            other if BY_KEYS else own,
            keys,
            key_stride_h,
            key_stride_n,
            key_stride_d,
            own if BY_KEYS else other,
            largest,
            shares,
            patches,
            heads,
            width,
            scale,
            BLOCK_I,
            BLOCK_J,
            BLOCK_D,
            PRECISION,
        )
        mask = (other < patches)[:, None] & (c < classes)[None, :]
        score = tl.load(maps + plane[None, :] * patches + other[:, None], mask=mask, other=0)
        total += tl.dot(tl.trans(tile) if BY_KEYS else tile, score, input_precision=MAP_PRECISION)
    plane += part.to(tl.int64) * tl.num_programs(2) * classes
    mask = (own < patches)[:, None] & (c < classes)[None, :]
    tl.store(gathered + plane[None, :] * patches + own[:, None], total, mask=mask)


@triton.jit(do_not_specialize=["patches", "heads", "each"])
def sums_kernel(
    queries,  # (B, heads, N, D)
    query_stride_b,
    query_stride_h,
    query_stride_n,
    query_stride_d,
    keys,  # (B, heads, N, D)
    key_stride_b,
    key_stride_h,
    key_stride_n,
    key_stride_d,
    largest,  # (B, heads, N)
    shares,  # (B, heads, N)
    patches,
    heads,
    width,
    scale,
    each,  # blocks that a program sums over
    weights,  # (B, N) float32
    sums,  # (parts, B, N) float64
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BY_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sums[i] = Σ_j A[i, j] weights[j];  by keys: sums[j] = Σ_i A[i, j] weights[i]. Those of tiles in float64."""
    OWN: tl.constexpr = BLOCK_J if BY_KEYS else BLOCK_I
    OTHER: tl.constexpr = BLOCK_I if BY_KEYS else BLOCK_J
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)
    part, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    queries += image * query_stride_b
    keys += image * key_stride_b
    largest += image * heads * patches
    shares += image * heads * patches
    total = tl.zeros([OWN], tl.float64)
    for first in range(part * each * OTHER, tl.minimum((part + 1) * each * OTHER, patches), OTHER):
        other = first + tl.arange(0, OTHER)
        tile = tile_of(
            queries,
            query_stride_h,
            query_stride_n,
            query_stride_d,
            other if BY_KEYS else own,
            keys,
            key_stride_h,
            key_stride_n,
            key_stride_d,
            own if BY_KEYS else other,
            largest,
            shares,
            patches,
            heads,
            width,
            scale,
            BLOCK_I,
            BLOCK_J,
            BLOCK_D,
            PRECISION,
        )
        weight = tl.load(weights + image * patches + other, mask=other < patches, other=0)
        if BY_KEYS:
            total += tl.sum(tile * weight[:, None], axis=0).to(tl.float64)
        else:
            total += tl.sum(tile * weight[None, :], axis=1).to(tl.float64)
    place = (part.to(tl.int64) * tl.num_programs(2) + image) * patches + own
    tl.store(sums + place, total, mask=own < patches)
