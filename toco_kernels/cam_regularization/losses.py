"""The losses of SEAM and EPS on class maps, in plain PyTorch: no loop, no sort, no waiting for the device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._library import accumulate_dtype
from ..common.checks import check_floating, check_same_device, check_tensor, checked_image_labels
from ..common.errors import bad_value, number
from .maps import max_norm, max_onehot


def seam_losses(
    cams: Tensor,  # (B, C, H, W)
    other_cams: Tensor,  # (B, C, h, w)
    revised: Tensor,  # (B, C, H, W)
    other_revised: Tensor,  # (B, C, h, w)
    image_labels: Tensor,  # (B, C - 1)
    *,
    share: float = 0.2,
) -> tuple[Tensor, Tensor]:  # (), ()
    """SEAM's equivariant regularisation (ER) and equivariant cross regularisation (ECR).

        n(x)  = max_norm(x), resized to the second view's size (bilinear, aligned corners), times the image's labels
        ER    = mean of |n(cams) - n(other_cams)| over images, objects' classes and pixels
        ECR   = mean of the largest `share` of |onehot(n(other_cams)) - n(revised)|, and the same with views exchanged

    The background of n(cams) is one minus its largest object score before `onehot` (`max_onehot`), which gets no
    gradient. The largest of each image are those above a threshold, which is found without sorting.

    Args:
        cams: (B, C, H, W) of the first view; class 0 is the background. Any floating dtype.
        other_cams: (B, C, h, w) of the second view.
        revised: (B, C, H, W) the first view's CAMs after `pixel_correlation`.
        other_revised: (B, C, h, w) the second's.
        image_labels: (B, C - 1) not 0 where an image shows a class; without background.
        share: of the differences of each image, in (0, 1]; at least one difference counts.

    Returns:
        ER, with a gradient to both CAMs, and ECR (of both directions together), with one to both revised CAMs. float32
        (float64 for float64 CAMs).

    Raises:
        TypeError: an argument is no tensor of floating point.
        ValueError: shapes or devices disagree, or `share` is out of its range.

    Source: SEAM (Wang et al., CVPR 2020), L_ER and L_ECR.
    """
    tensors = {"cams": cams, "other_cams": other_cams, "revised": revised, "other_revised": other_revised}
    for name, x in tensors.items():
        check_tensor(x, name, 4, "(B, C, H, W)")
        check_floating(x, name)
        check_same_device(x, name, cams, "cams")
    batch, classes, *size = other_cams.shape
    if classes < 2:
        raise bad_value("other_cams", "have a background and at least one class", f"shape {tuple(other_cams.shape)}")
    for name, expected in {
        "cams": (batch, classes, *cams.shape[2:]),
        "revised": tuple(cams.shape),
        "other_revised": (batch, classes, *size),
    }.items():
        if tuple(tensors[name].shape) != expected:
            raise bad_value(name, f"have shape {expected}", f"shape {tuple(tensors[name].shape)}")
    image_labels = checked_image_labels(image_labels, batch, classes - 1, cams, "cams")
    share = number(share, "share")
    if not 0 < share <= 1:
        raise bad_value("share", "be in (0, 1]", share)
    dtype = accumulate_dtype(cams.dtype)
    present = F.pad((image_labels != 0).to(dtype), (1, 0), value=1)[:, :, None, None]
    cams, other_cams, revised, other_revised = (
        _resized(max_norm(x.to(dtype)), size) * present for x in (cams, other_cams, revised, other_revised)
    )
    er = _mean((cams[:, 1:] - other_cams[:, 1:]).abs())
    kept = max(1, int(share * classes * size[0] * size[1]))
    ecr = _mean_of_largest((_target(other_cams) - revised).abs(), kept)
    return er, ecr + _mean_of_largest((_target(cams) - other_revised).abs(), kept)


@torch.no_grad()
def _target(cams: Tensor) -> Tensor:  # (B, C, h, w)
    """One class for each pixel, and a background."""
    objects = cams[:, 1:]
    return max_onehot(torch.cat([1 - objects.amax(dim=1, keepdim=True), objects], dim=1))


def _resized(maps: Tensor, size: list[int]) -> Tensor:  # (B, C, H, W) -> (B, C, h, w)
    if [*maps.shape[2:]] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def _mean_of_largest(
    x: Tensor,  # (B, …)
    k: int,
) -> Tensor:  # ()
    """The mean of each image's k largest: those above the k-th, and as many times that one as are missing."""
    x = x.flatten(1)
    least = x.kthvalue(x.shape[1] - k + 1, dim=1, keepdim=True).values
    above = x > least
    total = (x * above).sum(dim=1, keepdim=True) + least * (k - above.sum(dim=1, keepdim=True))
    return _mean(total) / k


def _mean(x: Tensor) -> Tensor:  # ()
    """0 over nothing."""
    return x.sum() / max(x.numel(), 1)


def adaptive_min_pooling_loss(
    cams: Tensor,  # (B, C, H, W)
) -> Tensor:  # ()
    """The quarter of an image's pixels that show its classes least should not show them at all.

        loss = mean over images, and over the H * W / 4 pixels with the smallest m, of max(0, m),   m = max over classes

    Args:
        cams: (B, C, H, W) of the image's classes: objects only, and zero for classes that it does not show.

    Returns:
        The scalar loss, float32 (float64 for float64 CAMs).

    Raises:
        TypeError: cams are no tensor of floating point.
        ValueError: there are fewer than four pixels, or no classes.

    Source: SEAM (Wang et al., CVPR 2020), `adaptive_min_pooling_loss` in its code.
    """
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(cams, "cams")
    kept = cams.shape[2] * cams.shape[3] // 4
    if kept < 1 or cams.shape[1] < 1:
        raise bad_value("cams", "have at least one class and four pixels", f"shape {tuple(cams.shape)}")
    shown = cams.amax(dim=1).flatten(1).to(accumulate_dtype(cams.dtype))
    largest = shown.kthvalue(kept, dim=1, keepdim=True).values
    below = shown < largest
    total = (F.relu(shown) * below).sum(dim=1, keepdim=True)
    total = total + F.relu(largest) * (kept - below.sum(dim=1, keepdim=True))
    return _mean(total) / kept


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
    return _mean((mix * objects + (1 - mix) * (1 - probabilities[:, :1] - rest) - saliency).square())
