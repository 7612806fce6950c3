"""EPS's saliency loss, in plain PyTorch on every device: it reads maps of the network's grid."""

import torch.nn.functional as F
from torch import Tensor

from .._library import accumulate_dtype
from ..common.checks import check_floating, check_same_device, check_tensor, checked_image_labels
from ..common.errors import bad_value, number
from .reference import mean


def saliency_loss(
    logits: Tensor,  # (B, C, H, W)
    saliency: Tensor,  # (B, 1, H', W')
    image_labels: Tensor,  # (B, C - 1)
    *,
    threshold: float = 0.5,
    mix: float = 0.5,
) -> Tensor:  # ()
    """Objects that overlap with what is salient, and the background with the others, explain a saliency map.

        p       = softmax of the logits over classes
        overlap = Σ round(p[c]) * round(s) / Σ (round(p[c]) + 1e-4)   over pixels, for each class c that the image shows
        objects = Σ p[c] over those with overlap > threshold;   rest = p[background] + Σ p[c] over those without
        loss    = mean of (mix * objects + (1 - mix) * (1 - rest) - s)²

    Args:
        logits: (B, C, H, W) any floating dtype; class 0 is the background. (In EPS's code it is the last.)
        saliency: (B, 1, H', W') s in [0, 1], resized to the logits' size (nearest). A constant.
        image_labels: (B, C - 1) not 0 where an image shows a class; without background.
        threshold: of the overlap. EPS: 0.5, and 0.4 in the published script of PPC.
        mix: how much objects count, against the background.

    Returns:
        The scalar loss, float32 (float64 for float64 logits), differentiable in them; which classes overlap is a
        constant.

    Raises:
        TypeError: an argument is no tensor of floating point.
        ValueError: shapes or devices disagree.

    Source: EPS (Lee et al., CVPR 2021), L_sal.
    """
    check_tensor(logits, "logits", 4, "(B, C, H, W)")
    check_floating(logits, "logits")
    check_tensor(saliency, "saliency", 4, "(B, 1, H', W')")
    check_floating(saliency, "saliency")
    check_same_device(saliency, "saliency", logits, "logits")
    batch, classes, *size = logits.shape
    if classes < 1:
        raise bad_value("logits", "have at least one class", f"shape {tuple(logits.shape)}")
    if saliency.shape[:2] != (batch, 1):
        raise bad_value("saliency", f"have shape (B, 1, …) = {(batch, 1)}, …", f"shape {tuple(saliency.shape)}")
    image_labels = checked_image_labels(image_labels, batch, classes - 1, logits, "logits")
    threshold, mix = number(threshold, "threshold"), number(mix, "mix")
    dtype = accumulate_dtype(logits.dtype)
    saliency = F.interpolate(saliency.detach().to(dtype), size=size, mode="nearest")
    probabilities = logits.softmax(dim=1, dtype=dtype)
    sure = probabilities[:, 1:].detach().round()
    overlap = (sure * saliency.round()).sum(dim=(2, 3)) / (sure + 1e-4).sum(dim=(2, 3))  # (B, C - 1)
    present, salient = image_labels != 0, overlap > threshold
    objects, rest = (
        (probabilities[:, 1:] * chosen[:, :, None, None]).sum(dim=1, keepdim=True)
        for chosen in (present & salient, present & ~salient)
    )
    return mean((mix * objects + (1 - mix) * (1 - probabilities[:, :1] - rest) - saliency).square())
