"""The filters alone, and mean-field inference with them, as PyTorch operators without a gradient."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor

from .._library import accumulate_dtype, define, register_triton
from ..common.checks import check_constant
from ..common.errors import bad_type, bad_value, integer, number
from . import reference
from .op import KERNELS, check_maps, check_work, checked_kernel, geometry_dtype, positive

LEAST = 1e-5  # a probability below this counts as this in its logarithm


def _filter(values: Tensor, image: Tensor, sigma_rgb: float, sigma_xy: float, *, kernel: str) -> Tensor:
    return reference.bilateral_filter(image, values, sigma_rgb, sigma_xy, kernel).contiguous()


def _crf(unary: Tensor, image: Tensor, iterations: int, gaussian: list, bilateral: list, *, kernel: str) -> Tensor:
    return reference.dense_crf(unary, image, iterations, tuple(gaussian), tuple(bilateral), kernel=kernel).contiguous()


def _fake(values: Tensor, *_) -> Tensor:
    return values.new_empty(values.shape)


_filters = {
    kernel: define(
        f"{kernel}_filter(Tensor values, Tensor image, float sigma_rgb, float sigma_xy) -> Tensor",
        room="dense_energy",
        reference=partial(_filter, kernel=kernel),
        fake=_fake,
    )
    for kernel in KERNELS
}
_crfs = {
    kernel: define(
        f"{kernel}_crf(Tensor unary, Tensor image, int iterations, float[] gaussian, float[] bilateral) -> Tensor",
        room="dense_energy",
        reference=partial(_crf, kernel=kernel),
        fake=_fake,
    )
    for kernel in KERNELS
}
register_triton("exact_filter")
register_triton("exact_crf")


def bilateral_filter(
    image: Tensor,  # (B, 3, H, W)
    values: Tensor,  # (B, K, H, W)
    *,
    kernel: str,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 50.0,
) -> Tensor:  # (B, K, H, W)
    """Sums of values over pixels that are close in position and colour.

        filtered_ik = sum over j of exp(-|x_i - x_j|² / (2 sigma_xy²) - |I_i - I_j|² / (2 sigma_rgb²)) * values_jk

    not normalised; with "lattice", the permutohedral approximation of it, about 0.6 of the sum.

    Args:
        image: (B, 3, H, W) colours on the scale of sigma_rgb, usually 0..255; integers or floating point.
        values: (B, K, H, W) float32, float64, float16 or bfloat16; computed in float32 (float64 for float64).
        kernel: "lattice" or "exact", see `dense_energy`.
        sigma_rgb: the scale of colours, > 0 or infinite.
        sigma_xy: the scale of distances in pixels, > 0 or infinite.

    Returns:
        (B, K, H, W) in the dtype of `values`; it has no gradient.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, an option is none of those above, or an input requires a gradient.
        RuntimeError: the exact kernel would take minutes.

    Source: Adams, Baek, Davis, Eurographics 2010, without normalisation.
    """
    check_maps(image, values, "values")
    check_constant(values, "values", "the filter has no gradient: the losses count what it returns as a constant")
    kernel, sigma_rgb, sigma_xy = checked_kernel(kernel, sigma_rgb, sigma_xy)
    check_work("bilateral_filter", kernel, values, values.shape[2:], 1)
    image = image.to(geometry_dtype(kernel, values))
    filtered = _filters[kernel](values.to(accumulate_dtype(values.dtype)), image, sigma_rgb, sigma_xy)
    return filtered.to(values.dtype)


def dense_crf(
    image: Tensor,  # (B, 3, H, W) in 0..255
    probabilities: Tensor,  # (B, K, H, W)
    *,
    kernel: str,
    iterations: int = 10,
    gaussian: Sequence[float] = (3.0, 3.0),
    bilateral: Sequence[float] = (67.0, 3.0, 4.0),
) -> Tensor:  # (B, K, H, W)
    """Class probabilities made to agree between pixels that are close, and close in colour: a dense CRF's mean field.

        U = -log(probabilities, within 1e-5..1),    Q = softmax(-U)
        Q <- softmax(-U + w_g * N_g Q + w_b * N_b Q)                              `iterations` times

    where N is a filter, of positions alone (g) or of positions and colours (b), between two multiplications by
    1 / sqrt(filter of ones): the symmetric normalisation that pydensecrf uses by default.

    Args:
        image: (B, 3, H, W) colours on the scale of the bilateral sigma, usually 0..255; integers or floating point.
        probabilities: (B, K, H, W) float32, float64, float16 or bfloat16; computed in float32 (float64 for float64).
        kernel: "lattice", as pydensecrf has it, or "exact", see `dense_energy`. Here the two are close, because the
            normalisation cancels the lattice's factor.
        iterations: >= 0.
        gaussian: sigma in pixels and weight of the filter of positions.
        bilateral: sigma in pixels, sigma of colours and weight of the filter of both.

    Returns:
        (B, K, H, W) probabilities in their dtype; they have no gradient.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, an option is none of those above, or an input requires a gradient.
        RuntimeError: the exact kernel would take minutes.

    Source: Krähenbühl & Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NIPS 2011.
    """
    check_maps(image, probabilities, "probabilities")
    check_constant(probabilities, "probabilities", "mean-field inference has no gradient here")
    kernel, *_ = checked_kernel(kernel, 1.0, 1.0)
    iterations = integer(iterations, "iterations", least=0)
    gaussian = checked_filter(gaussian, "gaussian", ("sigma_xy", "weight"))
    bilateral = checked_filter(bilateral, "bilateral", ("sigma_xy", "sigma_rgb", "weight"))
    check_work("dense_crf", kernel, probabilities, probabilities.shape[2:], 2 * (iterations + 1))
    unary = -probabilities.to(accumulate_dtype(probabilities.dtype)).clamp(LEAST, 1).log()
    image = image.to(geometry_dtype(kernel, probabilities))
    return _crfs[kernel](unary, image, iterations, gaussian, bilateral).to(probabilities.dtype)


def checked_filter(values: Sequence[float], argument: str, names: tuple[str, ...]) -> list[float]:
    """The sigmas and the weight of a filter as floats."""
    must = f"be {', '.join(names[:-1])} and {names[-1]}"
    if isinstance(values, (str, Tensor)) or not isinstance(values, (Sequence, np.ndarray)):
        raise bad_type(argument, must, type(values).__name__)
    if len(values) != len(names):
        raise bad_value(argument, must, values)
    *sigmas, weight = values
    return [*(positive(sigma, argument) for sigma in sigmas), number(weight, argument)]
