"""The patch contrasts on NVIDIA GPUs of compute capability 8.0 and later, in Triton.

Launchers with the signatures of the operators. Shapes and grids depend on the shapes of the inputs alone, so nothing
waits for the GPU and everything can be captured in a CUDA graph; no sum depends on which program ends first.
"""

import torch
import triton
from torch import Tensor

from .triton_rows import ALIGN, BLOCK_LABELS, BLOCK_RANK, ROWS, architecture, rank_kernel, rows_kernel, sum_kernel
from .triton_tiles import patch_token_contrast_backward_kernel, patch_token_contrast_kernel, weights_kernel

# Shared memory decides: 99 KB for one block on 8.6, 8.9 and 12.x, 227 KB on 9.0 and 10.x. A stage of the tile kernel
# holds 2 * BLOCK * BLOCK_D elements, one of the backward BLOCK_J * BLOCK_D.
SMALL = {
    2: {
        "tile": {"BLOCK": 128, "BLOCK_D": 32, "num_warps": 8, "num_stages": 3},
        "backward": {"BLOCK_J": 32, "BLOCK_D": 128, "num_warps": 8, "num_stages": 3},
    },
    4: {
        "tile": {"BLOCK": 64, "BLOCK_D": 32, "num_warps": 4, "num_stages": 3},
        "backward": {"BLOCK_J": 32, "BLOCK_D": 64, "num_warps": 4, "num_stages": 3},
    },
}
LARGE = {
    2: {
        "tile": {"BLOCK": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 4},
        "backward": {"BLOCK_J": 64, "BLOCK_D": 128, "num_warps": 8, "num_stages": 3},
    },
    4: {
        "tile": {"BLOCK": 64, "BLOCK_D": 32, "num_warps": 4, "num_stages": 3},
        "backward": {"BLOCK_J": 32, "BLOCK_D": 64, "num_warps": 4, "num_stages": 3},
    },
}


def patch_token_contrast(
    tokens: Tensor,  # (B, N, D)
    labels: Tensor,  # (B, N) int64
    pairs: Tensor | None,  # (2) int64
    ignore_index: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in float32. Five launches, six with the gradient.

    In half precision products take the tokens themselves, and their lengths enter later, in float32: unit vectors
    rounded to half precision would cost a digit of the cosines.
    """
    batch, patches, channels = tokens.shape
    new = _allocator(tokens.device)
    loss, grad_tokens = new(), new(batch, patches, channels) if with_grad else new(0)
    if batch * patches == 0:
        return loss.fill_(0.5), grad_tokens
    blocks = _blocks(tokens.dtype)
    tile, backward = blocks["tile"], blocks["backward"]
    order, starts, stops, valid, alike = _ranked(labels, ignore_index, new)
    weights = new(2)
    weights_kernel[(1,)](
        None if pairs is None else pairs.contiguous(), valid, alike, weights, batch, alike.numel(), BLOCK=256
    )
    rows, units, inverses = _rows(tokens, order, tokens.dtype, new)
    _, row_count, pitch = rows.shape
    columns = triton.cdiv(patches, tile["BLOCK"])
    tiles = columns * (columns + 1) // 2
    totals = new(batch, tiles)
    parts = new(batch, columns, row_count) if with_grad else None
    signs = new(2, batch, row_count, row_count // 32, dtype=torch.int32) if with_grad else None
    sizes = patches, channels, row_count, pitch, columns
    precision = _precision(tokens.dtype)
    patch_token_contrast_kernel[(tiles, batch)](
        rows,
        units,
        starts,
        valid,
        weights,
        parts,
        signs,
        totals,
        *sizes,
        PRECISION=precision,
        WITH_GRAD=with_grad,
        **tile,
    )
    sum_kernel[(1,)](totals, loss, totals.numel(), 0.5, BLOCK=1024)
    if with_grad and channels:
        patch_token_contrast_backward_kernel[(triton.cdiv(channels, backward["BLOCK_D"]), columns, batch)](
            rows,
            units,
            inverses,
            order,
            starts,
            stops,
            valid,
            weights,
            parts,
            signs,
            grad_tokens,
            *sizes,
            BLOCK=tile["BLOCK"],
            PRECISION=precision,
            **backward,
        )
    return loss, grad_tokens


def _blocks(dtype: torch.dtype) -> dict[str, dict[str, int]]:
    return (LARGE if 90 <= architecture() < 120 else SMALL)[dtype.itemsize]


def _precision(dtype: torch.dtype) -> str:
    """How products of float32 are computed: as exactly as float32, unless PyTorch was told that TF32 is enough."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def _allocator(device: torch.device):
    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return new


def _ranked(labels: Tensor, ignore_index: int, new) -> tuple[Tensor, ...]:
    """What `rank_kernel` writes."""
    batch, patches = labels.shape
    order, starts, stops = (new(batch, patches, dtype=torch.int32) for _ in range(3))
    valid = new(batch, dtype=torch.int32)
    alike = new(batch, triton.cdiv(patches, BLOCK_RANK), dtype=torch.int64)
    rank_kernel[(alike.shape[1], batch)](
        labels,
        *labels.stride(),
        order,
        starts,
        stops,
        valid,
        alike,
        patches,
        ignore_index,
        BLOCK=BLOCK_RANK,
        BLOCK_LABELS=BLOCK_LABELS,
    )
    return order, starts, stops, valid, alike


def _rows(tokens: Tensor, order: Tensor, dtype: torch.dtype, new) -> tuple[Tensor, Tensor, Tensor]:
    """What `rows_kernel` writes: rows of `dtype`, their units and the inverse lengths."""
    batch, patches, channels = tokens.shape
    row_count, pitch = (triton.cdiv(max(n, 1), ALIGN) * ALIGN for n in (patches, channels))
    rows = new(batch, row_count, pitch, dtype=dtype)
    units, inverses = new(batch, row_count), new(batch, row_count)
    rows_kernel[(row_count // ROWS, batch)](
        tokens,
        *tokens.stride(),
        order,
        rows,
        units,
        inverses,
        patches,
        channels,
        row_count,
        pitch,
        BLOCK_N=ROWS,
        BLOCK_D=min(1024, triton.next_power_of_2(pitch)),
    )
    return rows, units, inverses
