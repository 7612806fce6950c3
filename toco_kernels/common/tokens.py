"""Tokens of images and their labels, as several rooms take them."""

from torch import Tensor

from .checks import check_floating, check_same_device, check_tensor, in_autocast_dtype
from .errors import bad_type, bad_value

TOKENS = "(B, N, D) or (B, D, H, W)"


def checked_tokens(tokens: Tensor, argument: str) -> Tensor:  # (B, N, D)
    """`tokens`, (B, N, D) or (B, D, H, W), in the dtype that autocast wants; a view where strides allow it."""
    check_tensor(tokens, argument, (3, 4), TOKENS)
    check_floating(tokens, argument)
    return tokens_first(in_autocast_dtype(tokens))


def tokens_first(x: Tensor) -> Tensor:
    """(B, D, H, W) -> (B, H * W, D); (B, N, D) stays."""
    return x if x.ndim == 3 else x.flatten(2).mT


def check_labels(
    labels: Tensor, argument: str, ndim: int | tuple[int, int], shape: str, of: Tensor, owner: str
) -> None:
    """`labels` must be integers on the device of the tokens `of`, the argument `owner`."""
    check_tensor(labels, argument, ndim, shape)
    if labels.is_floating_point() or labels.is_complex():
        raise bad_type(argument, "be integers", labels.dtype)
    check_same_device(labels, argument, of, owner)


def checked_labels(labels: Tensor, tokens: Tensor, owner: str) -> Tensor:  # (B, N) int64
    """`labels`, (B, N) or (B, H, W) integers of any dtype, one for each of the checked tokens (B, N, D) of `owner`."""
    check_labels(labels, "labels", (2, 3), "(B, N) or (B, H, W)", tokens, owner)
    shape, labels = tuple(labels.shape), labels.flatten(1).long()
    if labels.shape != tokens.shape[:2]:
        raise bad_value("labels", f"have a label per patch, (B, N) = {tuple(tokens.shape[:2])}", f"shape {shape}")
    return labels
