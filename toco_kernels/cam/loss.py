"""segmentation_loss as a differentiable PyTorch operator."""

from torch import Tensor

from .._library import define_loss
from ..common.checks import check_floating, check_same_device, check_tensor
from ..common.errors import bad_type, bad_value, integer
from . import reference

_loss = define_loss(
    "segmentation_loss(Tensor logits, Tensor labels, int ignore_index, bool with_grad)"
    " -> (Tensor loss, Tensor grad_logits)",
    room="cam",
    reference=reference.segmentation_loss,
)


def segmentation_loss(
    logits: Tensor,  # (B, C, H, W)
    labels: Tensor,  # (B, H, W)
    *,
    ignore_index: int = 255,
) -> Tensor:  # ()
    """Cross-entropy in which the background and the objects weigh the same, however many pixels they have.

        loss = 1/2 * mean of CE over the pixels with label 0 + 1/2 * mean of CE over those with other labels

    The mean over no pixels is 0, so that the loss of a batch without background, without objects or without any label
    is finite. (The first published form divides 0 by 0 there; `compat.get_seg_loss` has both.) Logits of ignored pixels
    are never read.

    Args:
        logits: (B, C, H, W) float32, float64, float16 or bfloat16; class 0 is the background.
        labels: (B, H, W) any integer dtype, in 0..C-1 or `ignore_index`. Others make the loss NaN where a kernel runs,
            and are an error of PyTorch where the reference does. A constant.
        ignore_index: the label of pixels that take no part.

    Returns:
        The scalar loss, float32 (float64 for float64 logits), differentiable once in `logits`.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree.

    Source: ToCo (Ru et al., CVPR 2023), `get_seg_loss` in its code; the finite form as in DuPL.
    """
    check_tensor(logits, "logits", 4, "(B, C, H, W)")
    check_tensor(labels, "labels", 3, "(B, H, W)")
    check_floating(logits, "logits")
    if labels.is_floating_point() or labels.is_complex():
        raise bad_type("labels", "be integers", labels.dtype)
    check_same_device(labels, "labels", logits, "logits")
    batch, classes, *size = logits.shape
    if classes < 1:
        raise bad_value("logits", "have at least one class", f"shape {tuple(logits.shape)}")
    if labels.shape != (batch, *size):
        raise bad_value("labels", f"have logits' batch and size, {(batch, *size)}", f"shape {tuple(labels.shape)}")
    return _loss(logits, labels.long(), integer(ignore_index, "ignore_index", least=-(2**31)))
