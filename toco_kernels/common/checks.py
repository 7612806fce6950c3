"""Checks of tensor arguments that every room makes, in the one style of `errors`.

They run on every call of launch-bound operators: messages are built only when a check fails.
"""

import torch
from torch import Tensor

from .errors import bad_type, bad_value, number

FLOATING = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))


def check_tensor(tensor: Tensor, argument: str, ndim: int | tuple[int, int], shape: str) -> None:
    """`tensor` must be a torch.Tensor with `ndim` dimensions, or either of two; `shape` spells them: '(B, N, D)'."""
    if not isinstance(tensor, Tensor):
        raise bad_type(argument, "be a torch.Tensor", type(tensor).__name__)
    if tensor.ndim != ndim and (type(ndim) is int or tensor.ndim not in ndim):
        dimensions = ndim if type(ndim) is int else " or ".join(map(str, ndim))
        raise bad_value(argument, f"have {dimensions} dimensions {shape}", f"shape {tuple(tensor.shape)}")


def check_floating(tensor: Tensor, argument: str) -> None:
    """`tensor` must be float32, float64, float16 or bfloat16."""
    if tensor.dtype not in FLOATING:
        raise bad_type(argument, "be float32, float64, float16 or bfloat16", tensor.dtype)


def check_same_device(tensor: Tensor, argument: str, other: Tensor, other_argument: str) -> None:
    """`tensor` must live where `other` does."""
    if tensor.device != other.device:
        raise bad_value(argument, f"be on {other_argument}'s device, {other.device}", tensor.device)


def check_constant(tensor: Tensor, argument: str, why: str) -> None:
    """No gradient flows to `tensor`, so asking for one is an error rather than a silent zero."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise bad_value(argument, f"not require a gradient, because {why}", "one that does: detach it")


def checked_image_labels(image_labels: Tensor, batch: int, classes: int, other: Tensor, other_argument: str) -> Tensor:
    """`image_labels`, which must be (B, C) multi-hot of any dtype, in one that kernels read."""
    check_tensor(image_labels, "image_labels", 2, "(B, C)")
    check_same_device(image_labels, "image_labels", other, other_argument)
    if image_labels.shape != (batch, classes):
        raise bad_value("image_labels", f"have shape (B, C) = {(batch, classes)}", f"shape {tuple(image_labels.shape)}")
    if image_labels.is_complex():
        raise bad_type("image_labels", "be bool, integer or floating point", image_labels.dtype)
    if image_labels.dtype not in FLOATING | {torch.bool, torch.uint8, torch.int32, torch.int64}:
        image_labels = image_labels != 0
    return image_labels


def checked_boxes(boxes: Tensor | None, batch: int, other: Tensor, other_argument: str) -> Tensor | None:
    """`boxes`, which must be (B, 4) integers or None, as int64."""
    if boxes is None:
        return None
    check_tensor(boxes, "boxes", 2, "(B, 4)")
    check_same_device(boxes, "boxes", other, other_argument)
    if boxes.shape != (batch, 4):
        raise bad_value("boxes", f"have shape (B, 4) = {(batch, 4)}", f"shape {tuple(boxes.shape)}")
    if boxes.is_floating_point() or boxes.is_complex() or boxes.dtype == torch.bool:
        raise bad_type("boxes", "be integers", boxes.dtype)
    return boxes.to(torch.int64)


def checked_threshold(threshold: float | Tensor, argument: str, shape: tuple[int, ...], other: Tensor):
    """A number and no map, or a map (B, 1, H, W) of the scores `other` and a number that nobody reads."""
    if not isinstance(threshold, Tensor):
        return number(threshold, argument), None
    check_tensor(threshold, argument, 4, "(B, 1, H, W)")
    check_same_device(threshold, argument, other, "cams")
    if threshold.shape != shape:
        raise bad_value(argument, f"have shape (B, 1, H, W) = {shape}", f"shape {tuple(threshold.shape)}")
    return 0.0, threshold


def in_autocast_dtype(tensor: Tensor) -> Tensor:
    """`tensor` as an input of a matrix product: under autocast in its dtype, float64 excepted."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))
