"""SEAM's pixel correlation on NVIDIA GPUs of compute capability 8.0 and later, in Triton.

Launchers with the signatures of the operators. Shapes and grids depend on the shapes of the inputs alone, so nothing
waits for the GPU and everything can be captured in a CUDA graph; no sum depends on which program ends first.

Of memory that is quadratic in pixels there are the signs, one bit for each pair, where a gradient is wanted. Every
cosine is computed twice, for each 32 classes: once would take sums over programs. Never measured.
"""

import torch
import triton
from torch import Tensor

from ..common.triton_precision import dot_precision
from . import reference
from .triton_tiles import correlate_backward_kernel, correlate_kernel, lengths_backward_kernel, norms_kernel

ROWS = {"BLOCK_N": 64, "BLOCK_D": 32}  # of kernels that pass over features once
# So small that registers suffice on every GPU (tests/test_pixel_correlation_triton.py).
TILE = {"BLOCK_I": 32, "BLOCK_J": 64, "BLOCK_D": 32, "num_warps": 4, "num_stages": 2}
BACKWARD = {"BLOCK_I": 32, "BLOCK_J": 64, "BLOCK_T": 32, "num_warps": 8, "num_stages": 2}
MOST_CLASSES, MOST_CHANNELS = 32, 128  # of a tile


def pixel_correlation(
    features: Tensor,  # (B, D, N)
    cams: Tensor,  # (B, C, N)
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # (B, C, N), (B, N), (B, N, words)
    """Revised maps in float32, the sums of similarities and the signs of cosines. Two launches."""
    batch, width, pixels = features.shape
    classes, words = cams.shape[1], reference.words(pixels)
    torch._check(cams.shape == (batch, classes, pixels), lambda: "cams must be (B, C, N), as many pixels as features")
    torch._check(cams.device == features.device, lambda: "cams must be on the device of the features")
    revised = _new(features, batch, classes, pixels)
    sums, signs = _new(features, 0), _new(features, 0, dtype=torch.int32)
    if with_grad:
        sums, signs = _new(features, batch, pixels), _new(features, batch, pixels, words, dtype=torch.int32)
    if batch * pixels == 0:
        return revised, sums, signs
    block = _block(classes, MOST_CLASSES)
    correlate_kernel[(triton.cdiv(pixels, TILE["BLOCK_J"]), max(1, triton.cdiv(classes, block)), batch)](
        features,
        *features.stride(),
        _norms(features),
        cams.contiguous(),
        revised,
        sums,
        signs,
        pixels,
        width,
        classes,
        words,
        BLOCK_C=block,
        WITH_GRAD=with_grad,
        PRECISION=dot_precision(features.dtype),
        GATHER_PRECISION=dot_precision(),
        **TILE,
    )
    return revised, sums, signs


def pixel_correlation_backward(
    grad: Tensor,  # (B, C, N) float32
    features: Tensor,  # (B, D, N)
    cams: Tensor,  # (B, C, N)
    revised: Tensor,  # (B, C, N) float32
    sums: Tensor,  # (B, N) float32
    signs: Tensor,  # (B, N, words) int32
) -> Tensor:  # (B, D, N) float32
    """The gradient of the features. Three launches, and those of PyTorch for what is linear in pixels."""
    batch, width, pixels = features.shape
    classes, words = cams.shape[1], reference.words(pixels)
    for maps in (grad, cams, revised):
        torch._check(maps.shape == (batch, classes, pixels), lambda: "grad, cams and revised must have one shape")
    torch._check(sums.shape == (batch, pixels), lambda: "sums must have the shape (B, N)")
    torch._check(signs.shape == (batch, pixels, words), lambda: "signs must have the shape (B, N, words)")
    torch._check(signs.dtype == torch.int32, lambda: "signs must be int32")
    for x in (grad, cams, revised, sums, signs):
        torch._check(x.device == features.device, lambda: "all tensors must be on the device of the features")
    grad_features = _new(features, batch, width, pixels)
    if grad_features.numel() == 0:
        return grad_features
    scores = torch.cat([cams.float(), cams.new_ones(batch, 1, pixels, dtype=torch.float32)], dim=1)
    slopes = grad / sums[:, None]
    slopes = torch.cat([slopes, -(slopes * revised).sum(dim=1, keepdim=True)], dim=1)
    left, right = torch.cat([scores, slopes], dim=1), torch.cat([slopes, scores], dim=1)
    norms, sizes, block = _norms(features), (pixels, width), _block(width, MOST_CHANNELS)
    correlate_backward_kernel[(triton.cdiv(pixels, BACKWARD["BLOCK_J"]), triton.cdiv(width, block), batch)](
        features,
        *features.stride(),
        norms,
        left,
        right,
        signs.contiguous(),
        grad_features,
        *sizes,
        left.shape[1],
        words,
        BLOCK_D=block,
        PRECISION=dot_precision(),
        **BACKWARD,
    )
    lengths_backward_kernel[(triton.cdiv(pixels, ROWS["BLOCK_N"]), batch)](
        features, *features.stride(), norms, grad_features, *sizes, **ROWS
    )
    return grad_features


def _norms(features: Tensor) -> Tensor:  # (B, N)
    batch, width, pixels = features.shape
    norms = _new(features, batch, pixels)
    norms_kernel[(triton.cdiv(pixels, ROWS["BLOCK_N"]), batch)](
        features, *features.stride(), norms, pixels, width, **ROWS
    )
    return norms


def _new(like: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def _block(count: int, most: int) -> int:
    """Classes or channels of a tile."""
    return min(most, max(16, triton.next_power_of_2(count)))
