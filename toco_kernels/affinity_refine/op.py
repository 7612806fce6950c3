"""affinity_refine as a differentiable PyTorch operator."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._library import accumulate_dtype, define, differentiate
from ..common.checks import check_constant, check_floating, check_same_device, check_tensor
from ..common.errors import bad_type, bad_value, integer
from . import reference

DILATIONS = (1, 2, 4, 8, 12, 24)


def _refine(image: Tensor, masks: Tensor, dilations: list[int], iterations: int, kind: str, fast: bool) -> Tensor:
    refined = reference.affinity_refine(image, masks.to(image.dtype), dilations, iterations, kind)
    return refined.to(masks.dtype).clone(memory_format=torch.contiguous_format)  # never the input itself


def _refine_backward(grad: Tensor, image: Tensor, dilations: list[int], iterations: int, kind: str, fast: bool):
    """Refinement is linear in the masks, so their gradient is the same at any masks of the right shape."""
    _, grad_masks = differentiate(
        lambda masks: reference.affinity_refine(image, masks, dilations, iterations, kind),
        torch.zeros_like(grad, dtype=image.dtype),
        grad.to(image.dtype),
    )
    return grad_masks.to(grad.dtype)


_OTHERS = "int[] dilations, int iterations, str kind, bool fast"
_forward = define(
    f"affinity_refine(Tensor image, Tensor masks, {_OTHERS}) -> Tensor",
    room="affinity_refine",
    reference=_refine,
    fake=lambda image, masks, *_: masks.new_empty(masks.shape),
)
_backward = define(
    f"affinity_refine_backward(Tensor grad, Tensor image, {_OTHERS}) -> Tensor",
    room="affinity_refine",
    reference=_refine_backward,
    fake=lambda grad, *_: grad.new_empty(grad.shape),
)


def _setup_context(ctx, inputs, output):
    image, _, *ctx.others = inputs
    ctx.save_for_backward(image)


def _autograd(ctx, grad):
    (image,) = ctx.saved_tensors
    return None, _backward(grad, image, *ctx.others), None, None, None, None


def _autograd_backward(ctx, grad):
    """The backward is linear in its gradient too: its gradient is the forward."""
    (image,) = ctx.saved_tensors
    return _forward(image, grad, *ctx.others), None, None, None, None, None


def _setup_context_backward(ctx, inputs, output):
    _, image, *ctx.others = inputs
    ctx.save_for_backward(image)


torch.library.register_autograd(_forward, _autograd, setup_context=_setup_context)
torch.library.register_autograd(_backward, _autograd_backward, setup_context=_setup_context_backward)


def affinity_refine(
    image: Tensor,  # (B, colours, H, W)
    masks: Tensor,  # (B, C, h, w)
    *,
    dilations: Sequence[int] = DILATIONS,
    iterations: int = 10,
    kind: str = "par",
    resize: str = "masks",
    precision: str = "exact",
) -> Tensor:  # (B, C, H, W)
    """Refine class maps by the affinity of pixels: PAR or PAMR.

        masks(x) <- sum over k of w_k(x) * masks(x + k)              `iterations` times, replicated border

    over the 8 * len(dilations) neighbours k of each pixel, with weights from the image alone. With
    d_k = |image(x + k) - image(x)| per colour:

        par:   w = softmax_k(-mean((d_k / (σ + 1e-8) / 0.3)²)) + 0.01 * softmax_k(-(r_k / (σ_r + 1e-8) / 0.3)²)
        pamr:  w = softmax_k(-mean(d_k / (1e-8 + 0.1 σ)))

    where mean is over colours, σ is the unbiased deviation of the neighbours (PAMR: and of the pixel itself, once per
    dilation), r_k is the distance of a neighbour in pixels and σ_r its deviation over k. PAR's weights sum to 1.01, as
    published: a constant mask grows by 1.01 with each iteration.

    Args:
        image: (B, colours, H, W), any colours up to 1e18; at most 24 of them on CUDA. Not differentiable.
        masks: (B, C, h, w) float32, float64, float16 or bfloat16; computed in float32 (float64 for float64).
        dilations: distances of the rings of neighbours in pixels, each at least 1; at most 24 on CUDA.
        iterations: how often the masks are averaged, >= 0.
        kind: "par" or "pamr".
        resize: where sizes differ, "masks" resizes the masks to the image's size, "image" the image to the masks',
            both bilinearly with aligned corners. (ToCo, AFA and DuPL do the first; WeCLIP and ExCEL the second.)
        precision: "exact", or "fast": affinities may be stored in half precision.

    Returns:
        (B, C, H, W) refined masks in the masks' dtype, differentiable in `masks`.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, an option is none of those above, or the image requires a gradient.

    Complexity: O(H W (P colours + iterations P C)) time; memory beyond inputs and output: P floats per pixel of one
    image, for its affinities, and two copies of its masks. On the CPU up to 256 MB of it are kept for the next call.

    Source: PAR: Ru et al., Learning Affinity from Attention, CVPR 2022. PAMR: Araslanov & Roth, Single-Stage Semantic
    Segmentation from Image Labels, CVPR 2020.
    """
    check_tensor(image, "image", 4, "(B, colours, H, W)")
    check_tensor(masks, "masks", 4, "(B, C, h, w)")
    check_floating(image, "image")
    check_floating(masks, "masks")
    check_same_device(masks, "masks", image, "image")
    check_constant(image, "image", "refinement is not differentiable in the image")
    for name, tensor in (("image", image), ("masks", masks)):
        if tensor.shape[2] < 1 or tensor.shape[3] < 1:
            raise bad_value(name, "have at least one pixel", f"shape {tuple(tensor.shape)}")
    if image.shape[1] < 1:
        raise bad_value("image", "have at least one colour", f"shape {tuple(image.shape)}")
    if masks.shape[0] != image.shape[0]:
        raise bad_value("masks", f"have image's batch size, {image.shape[0]}", f"shape {tuple(masks.shape)}")
    dilations = checked_dilations(dilations)
    iterations = integer(iterations, "iterations", least=0)
    checked_option("kind", kind, ("par", "pamr"))
    checked_option("resize", resize, ("masks", "image"))
    checked_option("precision", precision, ("exact", "fast"))

    if masks.shape[2:] != image.shape[2:]:
        if resize == "masks":
            masks = F.interpolate(masks, size=image.shape[2:], mode="bilinear", align_corners=True)
        else:
            image = F.interpolate(image, size=masks.shape[2:], mode="bilinear", align_corners=True)
    image = image.to(accumulate_dtype(masks.dtype))
    return _forward(image, masks, dilations, iterations, kind, precision == "fast")


def checked_dilations(dilations: Sequence[int]) -> list[int]:
    """`dilations` as a list; they must be integers >= 1, at least one of them."""
    if isinstance(dilations, (str, Tensor)) or not isinstance(dilations, Sequence):
        raise bad_type("dilations", "be a sequence of integers", type(dilations).__name__)
    if not dilations:
        raise bad_value("dilations", "be integers >= 1, at least one of them", list(dilations))
    return [integer(d, "dilations", least=1) for d in dilations]


def checked_option(name: str, value: str, values: tuple[str, str]) -> None:
    """`value` must be one of the two `values`."""
    if value not in values:
        raise bad_value(name, f"be {values[0]!r} or {values[1]!r}", repr(value))
