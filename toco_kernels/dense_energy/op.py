"""dense_energy as differentiable PyTorch operators, one for each kernel."""

import math
from functools import partial

import torch
from torch import Tensor

from .._library import accumulate_dtype, define_loss, register_triton
from ..common.checks import check_constant, check_floating, check_same_device, check_tensor
from ..common.errors import bad_type, bad_value, integer, number
from ..common.exact_work import refuse_minutes
from . import reference

KERNELS = ("lattice", "exact")
# Of the exact sum the lattice returns about so much, on photographs at the published sigmas: 0.59 to 0.62 on eight of
# VOC, 0.55 to 0.63 on four others.
LATTICE_SHARE = 0.60

_INPUTS = "Tensor image, Tensor roi, Tensor unlabeled, float sigma_rgb, float sigma_xy, bool with_grad"
_energy = {
    kernel: define_loss(
        f"{kernel}_energy(Tensor probabilities, {_INPUTS}) -> (Tensor loss, Tensor grad_probabilities)",
        room="dense_energy",
        reference=partial(reference.dense_energy, kernel=kernel),
    )
    for kernel in KERNELS
}
_energy_from_logits = {
    kernel: define_loss(
        f"{kernel}_energy_from_logits(Tensor logits, {_INPUTS}) -> (Tensor loss, Tensor grad_logits)",
        room="dense_energy",
        reference=partial(reference.dense_energy_from_logits, kernel=kernel),
    )
    for kernel in KERNELS
}
register_triton("exact_energy")
register_triton("exact_energy_from_logits")


def dense_energy(
    image: Tensor,  # (B, 3, H, W) in 0..255
    probabilities: Tensor,  # (B, K, H, W)
    roi: Tensor,  # (B, H, W)
    unlabeled: Tensor,  # (B, H, W)
    *,
    kernel: str,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 50.0,
) -> Tensor:  # ()
    """Energy of class probabilities under the affinity of their pixels.

        energy = -1/B sum over images, classes k and pixels i of  S'_ik * G_i * (K S'_k)_i        S' = S * roi
        G_i    = max(roi_i - max over k of S_ik, 0); 1 where unlabeled
        K_ij   = exp(-|x_i - x_j|² / (2 sigma_xy²) - |I_i - I_j|² / (2 sigma_rgb²))

    The gradient is the published one, -2/B * G * (K S') * roi: gate and filtered values count as constants. The value
    over no images is 0. Published: times a weight of 1e-7.

    Args:
        image: (B, 3, H, W) colours on the scale of sigma_rgb, usually 0..255; integers or floating point. A constant.
        probabilities: (B, K, H, W) float32, float64, float16 or bfloat16; they need not sum to 1.
        roi: (B, H, W) 1 inside the region that counts, 0 outside; bool, integer or floating point. A constant.
        unlabeled: (B, H, W) not 0 where a pixel has no label; bool, integer or floating point.
        kernel: "lattice" for the published approximation, linear in pixels; "exact" for the sum over all pairs. The
            lattice returns about 0.6 of the exact sum.
        sigma_rgb: the scale of colours, > 0; infinite: colours do not matter.
        sigma_xy: the scale of distances in pixels, > 0; infinite: distances do not matter. With the lattice, a colour
            or position beyond some 4e5 of its sigmas gives NaN: float32 has no digits left there.

    Returns:
        The scalar energy, float32 (float64 for float64 probabilities), differentiable once in `probabilities`.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, an option is none of those above, or a constant requires a gradient.
        RuntimeError: the exact kernel would take minutes.

    Complexity: time and memory O(H W K) with the lattice; time O((H W)² K), memory O(H W K) exactly.

    Source: rloss (Tang et al., ECCV 2018), `DenseEnergyLoss`; ToCo (Ru et al., CVPR 2023).
    """
    check_maps(image, probabilities, "probabilities")
    for name, tensor in (("roi", roi), ("unlabeled", unlabeled)):
        _check_mask(tensor, name, probabilities, "probabilities")
    check_constant(roi, "roi", "the energy is not differentiable in it")
    kernel, sigma_rgb, sigma_xy = checked_kernel(kernel, sigma_rgb, sigma_xy)
    check_work("dense_energy", kernel, probabilities, probabilities.shape[2:], 1)
    roi = roi.to(accumulate_dtype(probabilities.dtype))
    image = image.to(geometry_dtype(kernel, probabilities))
    return _energy[kernel](probabilities, image, roi, unlabeled != 0, sigma_rgb, sigma_xy)


def dense_energy_from_logits(
    image: Tensor,  # (B, 3, H, W) in 0..255
    logits: Tensor,  # (B, K, H, W)
    labels: Tensor,  # (B, H, W)
    boxes: Tensor | None = None,  # (B, 4)
    *,
    kernel: str,
    scale_factor: float = 0.5,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    ignore_index: int = 255,
) -> Tensor:  # ()
    """`dense_energy` of softmax(logits), at `scale_factor` of the size.

    Probabilities are resized bilinearly, image, labels and the region inside the boxes to the nearest pixel.

    Args:
        image: (B, 3, H, W) colours on the scale of sigma_rgb, usually 0..255; integers or floating point. A constant.
        logits: (B, K, H, W) float32, float64, float16 or bfloat16.
        labels: (B, H, W) integers; pixels with `ignore_index` count as unlabeled.
        boxes: (B, 4) integers y0, y1, x0, x1, the region that counts in each image; None: all of it.
        kernel: "lattice" or "exact", see `dense_energy`.
        scale_factor: of height and width, > 0; fractions of a pixel are dropped.
        sigma_rgb: the scale of colours, > 0 or infinite.
        sigma_xy: the scale of distances, > 0 or infinite, in pixels of `image`; it shrinks with the image.
        ignore_index: the label of unlabeled pixels.

    Returns:
        The scalar energy, float32 (float64 for float64 logits), differentiable once in `logits`.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, an option is none of those above, or the image requires a gradient.
        RuntimeError: the exact kernel would take minutes.

    Source: ToCo (Ru et al., CVPR 2023), `get_energy_loss` and `DenseEnergyLoss` in its code.
    """
    check_maps(image, logits, "logits")
    _check_mask(labels, "labels", logits, "logits")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise bad_type("labels", "be integers", labels.dtype)
    batch, _, height, width = logits.shape
    if boxes is not None:
        check_tensor(boxes, "boxes", 2, "(B, 4)")
        if boxes.shape != (batch, 4):
            raise bad_value("boxes", f"have shape (B, 4) = {(batch, 4)}", f"shape {tuple(boxes.shape)}")
        if boxes.is_floating_point() or boxes.is_complex() or boxes.dtype == torch.bool:
            raise bad_type("boxes", "be integers", boxes.dtype)
        check_same_device(boxes, "boxes", logits, "logits")
    kernel, sigma_rgb, sigma_xy = checked_kernel(kernel, sigma_rgb, sigma_xy)
    scale_factor = number(scale_factor, "scale_factor")
    if not 0 < scale_factor < math.inf or height * scale_factor < 1 or width * scale_factor < 1:
        raise bad_value("scale_factor", f"be positive and leave pixels of {(height, width)}", scale_factor)
    ignore_index = integer(ignore_index, "ignore_index", least=-(1 << 63))

    (scale_factor,) = {scale_factor}  # a constant of compiled graphs, as a member: no size may depend on a variable
    rows, columns = (_nearest(size, scale_factor, logits.device) for size in (height, width))
    check_work("dense_energy_from_logits", kernel, logits, (len(rows), len(columns)), 1)
    image = _at(image, rows, columns).to(geometry_dtype(kernel, logits))
    unlabeled = _at(labels, rows, columns) == ignore_index
    dtype = accumulate_dtype(logits.dtype)
    if boxes is None:
        roi = torch.ones(unlabeled.shape, dtype=dtype, device=logits.device)
    else:
        inside = _inside(boxes[:, :2], rows, height)[:, :, None] & _inside(boxes[:, 2:], columns, width)[:, None]
        roi = inside.to(dtype)
    return _energy_from_logits[kernel](logits, image, roi, unlabeled, sigma_rgb, sigma_xy * scale_factor)


def _nearest(size: int, scale_factor: float, device: torch.device) -> Tensor:
    """The position in `size` that each position of the resized axis is taken from."""
    resized = int(size * scale_factor)
    return torch.arange(resized, device=device) * size // resized


def _at(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:  # (..., H, W), (h), (w) -> (..., h, w)
    """The pixels of these rows and columns, which are the nearest ones to evenly spaced positions."""
    steps = [size // len(positions) for size, positions in zip(maps.shape[-2:], (rows, columns), strict=True)]
    if steps[0] * len(rows) == maps.shape[-2] and steps[1] * len(columns) == maps.shape[-1]:
        return maps[..., :: steps[0], :: steps[1]]  # every second one, as published: a view
    return maps[..., rows, :][..., columns]


def _inside(bounds: Tensor, positions: Tensor, size: int) -> Tensor:  # (B, 2), (n) -> (B, n)
    """Whether a position lies within the bounds, which mean what they mean in a Python slice."""
    bounds = torch.where(bounds < 0, bounds + size, bounds)
    return (bounds[:, :1] <= positions) & (positions < bounds[:, 1:])


def check_maps(image: Tensor, maps: Tensor, name: str) -> None:
    """`maps` must be (B, K, H, W), floating point, with a class and a pixel; `image` (B, 3, H, W) and a constant."""
    check_tensor(image, "image", 4, "(B, 3, H, W)")
    check_tensor(maps, name, 4, "(B, K, H, W)")
    if image.is_complex() or image.dtype == torch.bool:
        raise bad_type("image", "be integers or floating point", image.dtype)
    check_floating(maps, name)
    check_same_device(image, "image", maps, name)
    check_constant(image, "image", "it is a constant here")
    if 0 in maps.shape[1:]:
        raise bad_value(name, "have at least one class and one pixel", f"shape {tuple(maps.shape)}")
    expected = (maps.shape[0], 3, *maps.shape[2:])
    if image.shape != expected:
        raise bad_value("image", f"have shape (B, 3, H, W) = {expected}, {name}'s size", f"shape {tuple(image.shape)}")


def _check_mask(mask: Tensor, argument: str, maps: Tensor, name: str) -> None:
    """`mask` must have a number for every pixel of `maps`."""
    check_tensor(mask, argument, 3, "(B, H, W)")
    if mask.is_complex():
        raise bad_type(argument, "be bool, integer or floating point", mask.dtype)
    check_same_device(mask, argument, maps, name)
    expected = (maps.shape[0], *maps.shape[2:])
    if mask.shape != expected:
        raise bad_value(argument, f"have shape (B, H, W) = {expected}, {name}'s size", f"shape {tuple(mask.shape)}")


def checked_kernel(kernel: str, sigma_rgb: float, sigma_xy: float) -> tuple[str, float, float]:
    """The three options, which must be what `dense_energy` says."""
    if kernel not in KERNELS:
        raise bad_value("kernel", "be 'lattice' or 'exact'", repr(kernel))
    return kernel, positive(sigma_rgb, "sigma_rgb"), positive(sigma_xy, "sigma_xy")


def check_work(operator: str, kernel: str, maps: Tensor, size: tuple[int, int], filters: int) -> None:
    """Raise before an exact run that would take minutes."""
    if kernel == "exact":
        shape, double = (*maps.shape[:2], *size), maps.dtype == torch.float64
        refuse_minutes(operator, shape, filters, double=double, gpu=maps.device.type == "cuda")


def positive(value: float, argument: str) -> float:
    """`value` as a float, which must be more than 0; it may be infinite."""
    value = number(value, argument)
    if not value > 0:
        raise bad_value(argument, "be positive", value)
    return value


def geometry_dtype(kernel: str, maps: Tensor) -> torch.dtype:
    """What distances are computed in: the points of the lattice are where float32 puts them."""
    return torch.float32 if kernel == "lattice" else accumulate_dtype(maps.dtype)
