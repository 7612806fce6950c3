"""pixel_correlation as a differentiable PyTorch operator."""

import torch
from torch import Tensor

from .._library import accumulate_dtype, define, differentiate, no_second_derivative, refuse_forward_ad, register_triton
from ..common.checks import check_constant, check_floating, check_same_device, check_tensor, in_autocast_dtype
from ..common.errors import bad_value
from . import reference

# Operators return float32 for half precision. For the backward they keep the sums of similarities, and a bit for each
# pair of pixels: whether its cosine is positive.


def _correlate(features: Tensor, cams: Tensor, with_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulate_dtype(features.dtype)
    features, cams = features.to(dtype), cams.to(dtype)
    revised = reference.pixel_correlation(features, cams)
    if not with_grad:
        return revised, features.new_empty(0), features.new_empty(0, dtype=torch.int32)
    sums = reference.cosines(features).relu().sum(dim=1) + reference.EPSILON
    return revised, sums, reference.signs(features)


def _correlate_backward(
    grad: Tensor,
    features: Tensor,
    cams: Tensor,
    revised: Tensor,
    sums: Tensor,
    signs: Tensor,
) -> Tensor:
    dtype = grad.dtype
    cams = cams.to(dtype)
    return differentiate(lambda x: reference.pixel_correlation(x, cams), features.to(dtype), grad)[1]


def _fake(features: Tensor, cams: Tensor, with_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, pixels = features.shape
    dtype = accumulate_dtype(features.dtype)
    return (
        cams.new_empty(cams.shape, dtype=dtype),
        features.new_empty((batch, pixels) if with_grad else 0, dtype=dtype),
        features.new_empty((batch, pixels, reference.words(pixels)) if with_grad else 0, dtype=torch.int32),
    )


_forward = define(
    "pixel_correlation(Tensor features, Tensor cams, bool with_grad) -> (Tensor revised, Tensor sums, Tensor signs)",
    room="pixel_correlation",
    reference=_correlate,
    fake=_fake,
)
_backward = define(
    "pixel_correlation_backward(Tensor grad, Tensor features, Tensor cams, Tensor revised, Tensor sums, Tensor signs)"
    " -> Tensor",
    room="pixel_correlation",
    reference=_correlate_backward,
    fake=lambda grad, features, *_: grad.new_empty(features.shape),
)
register_triton("pixel_correlation")
register_triton("pixel_correlation_backward")


class _Correlate(torch.autograd.Function):
    """An autograd.Function around the operators, not `register_autograd` on them: it costs several times less."""

    @staticmethod
    def forward(ctx, features: Tensor, cams: Tensor) -> Tensor:
        revised, sums, signs = _forward(features, cams, True)
        ctx.save_for_backward(features, cams, revised, sums, signs)
        return revised.clone() if revised.dtype == cams.dtype else revised.to(cams.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        features, cams, revised, sums, signs = ctx.saved_tensors
        found = _backward(grad.to(revised.dtype), features, cams, revised, sums, signs).to(features.dtype)
        if torch.is_grad_enabled():  # create_graph=True
            found = no_second_derivative("pixel_correlation has", found, features)
        return found, None


def pixel_correlation(
    features: Tensor,  # (B, D, H, W)
    cams: Tensor,  # (B, C, H, W)
) -> Tensor:  # (B, C, H, W)
    """Class maps revised by the correlation of pixels: each pixel gets the scores of those that are similar to it.

        g[i, j]    = max(0, <f[i], f[j]>) / ((|f[i]| + 1e-5) * (|f[j]| + 1e-5))        two pixels of one image
        out[c, j]  = Σ cams[c, i] * g[i, j] over i  /  (Σ g[i, j] over i + 1e-5)

    SEAM's pixel correlation module (PCM), without the convolutions that make the features: an attention with a ReLU in
    place of the softmax. No N × N matrix of numbers is stored; where a gradient is wanted, one bit for each pair is. A
    cosine of exactly 0 has the gradient 0. A pixel whose features are zero is similar to none, also not to itself: its
    scores are 0.

    Args:
        features: (B, D, H, W) float32, float64, float16 or bfloat16; any strides. Under autocast they and the CAMs are
            cast as the inputs of a matrix product are.
        cams: (B, C, H, W) scores of the classes. SEAM: stretched to a maximum of 1, the background one minus the
            largest, and only the largest of the other classes kept in each pixel. A constant: detached, as there.

    Returns:
        (B, C, H, W) in the dtype of the (cast) CAMs, differentiable once in `features`.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, or the CAMs require a gradient.

    Source: SEAM (Wang et al., CVPR 2020), pixel correlation module; PPC (Du et al., CVPR 2022) contrasts its results.
    """
    check_tensor(features, "features", 4, "(B, D, H, W)")
    check_floating(features, "features")
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(cams, "cams")
    check_same_device(cams, "cams", features, "features")
    check_constant(cams, "cams", "only the features are trained through them")
    batch, _, *size = features.shape
    if (len(cams), *cams.shape[2:]) != (batch, *size):
        raise bad_value("cams", f"have features' batch and size, {(batch, *size)}", f"shape {tuple(cams.shape)}")
    features, cams = in_autocast_dtype(features), in_autocast_dtype(cams)
    if features.dtype != cams.dtype:
        dtype = torch.promote_types(features.dtype, cams.dtype)
        features, cams = features.to(dtype), cams.to(dtype)
    refuse_forward_ad("pixel_correlation has", features, cams)
    inputs = features.flatten(2), cams.flatten(2)
    if features.requires_grad and torch.is_grad_enabled():
        revised = _Correlate.apply(*inputs)
    else:
        revised = _forward(*inputs, False)[0].to(cams.dtype)
    return revised.unflatten(2, tuple(size))
