"""The exact kernel of dense_energy on NVIDIA GPUs of compute capability 8.0 and later, in Triton.

Launchers with the signatures of the operators. Nothing waits for the GPU or copies to the host, no memory is quadratic
in pixels, shapes depend on those of the inputs alone, and no sum depends on which program ends first: all of it can be
captured in a CUDA graph. What is linear in pixels and no sum, such as a softmax, is PyTorch's.
"""

import math

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from .triton_filter import filter_kernel, halves_kernel
from .triton_maps import energy_kernel, logits_backward_kernel

PADDING, BLOCK_J = 128, 32  # images are padded to whole tiles of so many pixels; pixels that a tile sums at a time
TILES = {32: (64, 4), 64: (128, 8)}  # channels of a tile -> its pixels and warps, so that 255 registers suffice
PROGRAMS = 2048  # fill the largest GPU several times over; with fewer blocks of pixels, their sums are cut into parts
PART = 1024  # pixels at least


def exact_filter(
    values: Tensor,  # (B, K, H, W) float32
    image: Tensor,  # (B, 3, H, W) float32
    sigma_rgb: float,
    sigma_xy: float,
) -> Tensor:  # (B, K, H, W)
    """The sum over all pairs. Three launches, and those of PyTorch."""
    _check(values, image)
    if not len(values):
        return torch.empty_like(values, memory_format=torch.contiguous_format)
    return _filter(values, _features(image, sigma_rgb, sigma_xy)).sum(dim=0).view(values.shape)


def exact_energy(
    probabilities: Tensor,  # (B, K, H, W)
    image: Tensor,  # (B, 3, H, W) float32
    roi: Tensor,  # (B, H, W) float32
    unlabeled: Tensor,  # (B, H, W) bool
    sigma_rgb: float,
    sigma_xy: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The energy, and its gradient in float32, from one filter."""
    _check(probabilities, image)
    batch, channels, height, width = probabilities.shape
    pixels = height * width
    for mask in (roi, unlabeled):
        torch._check(mask.shape == (batch, height, width), lambda: "roi and unlabeled must have the image's size")
        torch._check(mask.device == image.device, lambda: "all tensors must be on one device")
    grad = image.new_empty(probabilities.shape if with_grad else 0)
    if batch == 0:
        return image.new_zeros(()), grad
    probabilities, roi = probabilities.contiguous().float(), roi.contiguous()
    gate = (roi - probabilities.amax(dim=1)).clamp(min=0).masked_fill(unlabeled, 1)
    inside = probabilities * roi[:, None]
    filtered = _filter(inside, _features(image, sigma_rgb, sigma_xy))
    block = 1024
    totals = image.new_empty(batch, channels, triton.cdiv(pixels, block))
    energy_kernel[(totals.shape[2], channels, batch)](
        filtered,
        inside,
        gate,
        roi,
        totals,
        grad,
        channels,
        pixels,
        len(filtered),
        -2 / batch,
        BLOCK=block,
        WITH_GRAD=with_grad,
    )
    return (totals.sum(dtype=torch.float64) / -batch).float(), grad


def exact_energy_from_logits(
    logits: Tensor,  # (B, K, H, W)
    image: Tensor,  # (B, 3, h, w) float32
    roi: Tensor,  # (B, h, w) float32
    unlabeled: Tensor,  # (B, h, w) bool
    sigma_rgb: float,
    sigma_xy: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The energy of the softmax, resized to the image; and its gradient in float32."""
    batch, channels, height, width = logits.shape
    size = image.shape[2:]
    probabilities = F.softmax(logits.contiguous(), dim=1, dtype=torch.float32)
    if batch == 0:
        return image.new_zeros(()), image.new_empty(logits.shape if with_grad else 0)
    resized = F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)
    loss, grad_resized = exact_energy(resized, image, roi, unlabeled, sigma_rgb, sigma_xy, with_grad)
    if not with_grad:
        return loss, grad_resized
    grad, block = torch.empty_like(probabilities), 64
    logits_backward_kernel[(triton.cdiv(width, block), height, batch)](
        grad_resized,
        probabilities,
        grad,
        channels,
        height,
        width,
        *size,
        height / size[0],
        width / size[1],
        triton.cdiv(2 * size[0], height),
        triton.cdiv(2 * size[1], width),
        BLOCK_X=block,
        BLOCK_C=32,
    )
    return loss, grad


def exact_crf(
    unary: Tensor,  # (B, K, H, W) float32
    image: Tensor,  # (B, 3, H, W) float32
    iterations: int,
    gaussian: list[float],  # sigma_xy, weight
    bilateral: list[float],  # sigma_xy, sigma_rgb, weight
) -> Tensor:  # (B, K, H, W)
    """Mean field. The filter of positions alone falls apart into one along columns and one along rows.

    Predicted as in triton_filter.py, never measured: 0.24 s for 375 x 500 pixels, up to 32 classes and 10 iterations.
    """
    _check(unary, image)
    sigma, near_weight = gaussian
    sigma_xy, sigma_rgb, weight = bilateral
    unary = unary.contiguous()
    if not len(unary):
        return torch.empty_like(unary)
    along_y, along_x = (_along(size, sigma, image.device) for size in unary.shape[2:])
    features = _features(image, sigma_rgb, sigma_xy)

    def near(values: Tensor) -> Tensor:
        return along_y @ (values @ along_x)

    def alike(values: Tensor) -> Tensor:
        return _filter(values, features).sum(dim=0).view(values.shape)

    ones = torch.ones_like(unary[:, :1])
    near_norm, norm = ((f(ones) + 1e-20).rsqrt() for f in (near, alike))
    q = F.softmax(-unary, dim=1)
    for _ in range(iterations):
        logits = near_weight * (near_norm * near(near_norm * q)) - unary
        q = F.softmax(logits + weight * (norm * alike(norm * q)), dim=1)
    return q


def _check(maps: Tensor, image: Tensor) -> None:
    torch._check(
        maps.ndim == 4 and 0 not in maps.shape[1:], lambda: "maps must be (B, K, H, W), with a class and a pixel"
    )
    expected = (maps.shape[0], 3, *maps.shape[2:])
    torch._check(image.shape == expected, lambda: "image must have the shape (B, 3, H, W) of the maps")
    torch._check(image.dtype == torch.float32, lambda: "image must be float32")
    torch._check(image.device == maps.device, lambda: "image must be on the device of the maps")


def _along(size: int, sigma: float, device: torch.device) -> Tensor:  # (size, size)
    """Affinities of positions on one axis."""
    scaled = torch.arange(size, dtype=torch.float32, device=device) * (1 / sigma)
    return torch.exp(-(scaled[:, None] - scaled).square() / 2)


def _features(image: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:  # (B, 5, padded)
    """Positions and colours, scaled for `filter_kernel`; zeros beyond the last pixel."""
    batch, _, height, width = image.shape
    unit = math.sqrt(math.log2(math.e) / 2)  # exp(-d² / 2) = 2^-(unit d)²
    padded = triton.cdiv(height * width, PADDING) * PADDING
    features = image.new_zeros(batch, 5, padded)
    maps = features[:, :, : height * width].unflatten(2, (height, width))
    maps[:, 0] = torch.arange(width, dtype=torch.float32, device=image.device) * (unit / sigma_xy)
    maps[:, 1] = torch.arange(height, dtype=torch.float32, device=image.device)[:, None] * (unit / sigma_xy)
    maps[:, 2:] = image * (unit / sigma_rgb)
    return features


def _filter(
    values: Tensor,  # (B, K, H, W) float32
    features: Tensor,  # (B, 5, padded)
) -> Tensor:  # (parts, B, K, H * W), of which the sum is wanted
    """Launches of the two kernels of `triton_filter`."""
    values = values.contiguous().flatten(2)
    batch, channels, pixels = values.shape
    padded = features.shape[2]
    block_c = min(TILES) if channels <= min(TILES) else max(TILES)
    block, warps = TILES[block_c]
    width = triton.cdiv(channels, block_c) * block_c
    largest = torch.linalg.vector_norm(values, math.inf, dim=2)
    high, low, rest = (values.new_empty(batch, width, padded, dtype=torch.float16) for _ in range(3))
    units = values.new_empty(batch, width)
    sizes = channels, pixels, width, padded
    halves_kernel[(padded // PADDING, width // block_c, batch)](
        values, largest, high, low, rest, units, *sizes, BLOCK=PADDING, BLOCK_C=block_c
    )
    blocks, tiles = padded // block, padded // BLOCK_J
    parts = max(1, min(triton.cdiv(PROGRAMS, blocks * width // block_c * batch), padded // PART))
    in_part = triton.cdiv(tiles, parts)
    parts = triton.cdiv(tiles, in_part)
    filtered = values.new_empty(parts, batch, channels, pixels)
    filter_kernel[(blocks, width // block_c * parts, batch)](
        features,
        high,
        low,
        rest,
        units,
        filtered,
        *sizes,
        in_part,
        BLOCK=block,
        BLOCK_J=BLOCK_J,
        BLOCK_C=block_c,
        EXACT=torch.backends.cuda.matmul.fp32_precision != "tf32",
        num_warps=warps,
        num_stages=2,
    )
    return filtered
