"""Checks of tensor arguments that every room makes, in the one style of `errors`.

They run on every call of launch-bound operators: messages are built only when a check fails.
"""

import torch
from torch import Tensor

from .errors import bad_type, bad_value

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


def in_autocast_dtype(tensor: Tensor) -> Tensor:
    """`tensor` as an input of a matrix product: under autocast in its dtype, float64 excepted."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))
