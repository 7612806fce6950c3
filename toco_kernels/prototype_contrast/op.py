"""estimate_prototypes and prototype_contrast as PyTorch operators."""

import torch
import torch.distributed as dist
from torch import Tensor

from .._library import accumulate_dtype, define, define_loss, register_triton
from ..common.checks import check_constant, check_floating, check_same_device, check_tensor, in_autocast_dtype
from ..common.errors import bad_type, bad_value, integer, number
from . import reference

_loss = define_loss(
    "prototype_contrast(Tensor features, Tensor labels, Tensor prototypes, float temperature, int ignore_index,"
    " bool with_grad) -> (Tensor loss, Tensor grad_features)",
    room="prototype_contrast",
    reference=reference.prototype_contrast,
)
register_triton("prototype_contrast")


def _candidates_fallback(features: Tensor, cams: Tensor, present: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(features.dtype)
    return reference.prototype_candidates(features.to(dtype), cams, present, k)


candidates = define(
    "prototype_candidates(Tensor features, Tensor cams, Tensor? present, SymInt k) -> (Tensor scores, Tensor vectors)",
    room="prototype_contrast",
    reference=_candidates_fallback,
    fake=lambda features, cams, present, k: (
        cams.new_empty(cams.shape[1], k),
        features.new_empty(cams.shape[1], k, features.shape[1], dtype=accumulate_dtype(features.dtype)),
    ),
)


@torch.no_grad()
def estimate_prototypes(
    features: Tensor,  # (B, D, H, W)
    cams: Tensor,  # (B, C, H, W)
    k: int,
    *,
    image_labels: Tensor | None = None,  # (B, C - 1) without background, or (B, C)
    process_group: "dist.ProcessGroup | None" = None,
) -> Tensor:  # (C, D)
    """Prototypes of classes: the mean feature of the k pixels of the whole batch that show each class most surely.

        p[c] = Σ m[c, i] v[i] / |Σ m[c, i] v[i]|    over the k pixels i of all images with the largest m[c, i]

    with features v and scores m. Of equal scores the lowest pixel of the lowest image counts, on every device, as where
    a background channel is constant. If there are fewer than k pixels, all count. Scores below zero weigh nothing, and
    a class whose scores are all zero has the prototype zero, whose cosine with everything is 0. (The published code
    weighs with negative scores too, and divides by their sum.)

    Args:
        features: (B, D, H, W) float32, float64, float16 or bfloat16. They get no gradient.
        cams: (B, C, H, W) scores of the classes for each pixel, in any of these dtypes. No gradient.
        k: how many pixels make a prototype. PPC: 32 of the 16 × 16 grid on SEAM, 16 on EPS.
        image_labels: which classes an image shows, not 0 where it does: (B, C - 1) when class 0 of `cams` is the
            background, which every image shows, or (B, C). Pixels of other images do not count then. None, as
            published: a class's prototype takes pixels from all images, also where none shows the class.
        process_group: None, this process alone; else the processes whose batches are one, in the order of their ranks.
            Each sends its own k best pixels of each class, no maps. D, C and k must be the same everywhere.

    Returns:
        (C, D) vectors of length 1, or zero; float32 (float64 for float64 features).

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: k is no positive integer, or shapes or devices disagree.

    Source: PPC (Du et al., CVPR 2022), prototype estimation.
    """
    check_tensor(features, "features", 4, "(B, D, H, W)")
    check_floating(features, "features")
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_floating(cams, "cams")
    check_same_device(cams, "cams", features, "features")
    batch, classes, *size = cams.shape
    if (len(features), *features.shape[2:]) != (batch, *size):
        raise bad_value("cams", f"have features' batch and size, {(len(features), *features.shape[2:])}", cams.shape)
    k = integer(k, "k", least=1)
    present = None
    if image_labels is not None:
        check_tensor(image_labels, "image_labels", 2, "(B, C - 1) or (B, C)")
        if image_labels.is_complex():
            raise bad_type("image_labels", "be bool, integer or floating point", image_labels.dtype)
        check_same_device(image_labels, "image_labels", features, "features")
        if image_labels.shape not in ((batch, classes), (batch, classes - 1)):
            must = f"have shape (B, C - 1) = {(batch, classes - 1)} or (B, C) = {(batch, classes)}"
            raise bad_value("image_labels", must, f"shape {tuple(image_labels.shape)}")
        present = image_labels != 0
        if present.shape[1] < classes:
            present = torch.cat([present.new_ones(batch, 1), present], dim=1)
    cams = cams.to(accumulate_dtype(features.dtype)).clamp_min(0)
    found = candidates(features.flatten(2), cams.flatten(2), present, k)
    if process_group is not None:
        if not isinstance(process_group, dist.ProcessGroup):
            raise bad_type("process_group", "be None or a torch.distributed.ProcessGroup", type(process_group).__name__)
        found = _joined(*found, process_group)
    return reference.prototypes_of(*found)


def _joined(
    scores: Tensor,  # (C, k)
    vectors: Tensor,  # (C, k, D)
    process_group: "dist.ProcessGroup",
) -> tuple[Tensor, Tensor]:  # (C, k), (C, k, D)
    """The k best of all ranks' candidates; of equal ones, the lowest rank's."""
    both = torch.cat([scores[:, :, None], vectors], dim=2)
    all_of_them = [torch.empty_like(both) for _ in range(process_group.size())]
    dist.all_gather(all_of_them, both, group=process_group)
    joined = torch.cat(all_of_them, dim=1)
    best = joined[:, :, 0].sort(dim=1, descending=True, stable=True).indices[:, : scores.shape[1]]
    joined = joined.gather(1, best[:, :, None].expand(-1, -1, joined.shape[2]))
    return joined[:, :, 0], joined[:, :, 1:]


def prototype_contrast(
    features: Tensor,  # (B, D, H, W)
    labels: Tensor,  # (B, H, W)
    prototypes: Tensor,  # (C, D)
    *,
    temperature: float = 0.1,
    ignore_index: int = 255,
) -> Tensor:  # ()
    """Contrast of pixels with prototypes: each is similar to the prototype of its label, and to no other.

        s[i, c] = <v[i] / |v[i]|, p[c]> / temperature
        loss    = mean of -log(exp(s[i, label[i]]) / Σ exp(s[i, c]) over c)   over the pixels i that are not ignored

    Features are read in place, whatever their strides, and loss and gradient come from one pass over them. The mean
    over no pixels is 0. A pixel whose features are all zero has no direction: its cosines are 0, its loss is log C, and
    it gets no gradient. (Autograd of the published code gives it one of 10¹² times the others', which the ReLU before
    it discards.) Prototypes are used as they are: one that is zero has the score 0 and takes part. Ignored pixels are
    never read.

    Args:
        features: (B, D, H, W) float32, float64, float16 or bfloat16. Under autocast they and the prototypes are cast as
            the inputs of a matrix product are.
        labels: (B, H, W) any integer dtype, in 0 … C-1 or `ignore_index`. Others make the loss NaN where a kernel runs,
            and are an error of PyTorch where the reference does. A constant.
        prototypes: (C, D) as `estimate_prototypes` gives them. A constant.
        temperature: divides the cosines, > 0. PPC: 0.1.
        ignore_index: the label of pixels that take no part.

    Returns:
        The scalar loss, float32 (float64 for float64 features), differentiable once in `features`.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, temperature is not positive, or prototypes require a gradient.

    Source: PPC (Du et al., CVPR 2022), pixel-to-prototype contrast.
    """
    check_tensor(features, "features", 4, "(B, D, H, W)")
    check_floating(features, "features")
    check_tensor(labels, "labels", 3, "(B, H, W)")
    if labels.is_floating_point() or labels.is_complex():
        raise bad_type("labels", "be integers", labels.dtype)
    check_same_device(labels, "labels", features, "features")
    batch, width, *size = features.shape
    if labels.shape != (batch, *size):
        raise bad_value("labels", f"have features' batch and size, {(batch, *size)}", f"shape {tuple(labels.shape)}")
    check_tensor(prototypes, "prototypes", 2, "(C, D)")
    check_floating(prototypes, "prototypes")
    check_same_device(prototypes, "prototypes", features, "features")
    check_constant(prototypes, "prototypes", "the loss trains the features alone")
    if len(prototypes) < 1 or prototypes.shape[1] != width:
        must = f"have at least one row of features' width, {width}"
        raise bad_value("prototypes", must, f"shape {tuple(prototypes.shape)}")
    temperature = number(temperature, "temperature")
    if not temperature > 0:
        raise bad_value("temperature", "be positive", temperature)
    ignore_index = integer(ignore_index, "ignore_index", least=-(2**63))
    features, prototypes = in_autocast_dtype(features), in_autocast_dtype(prototypes)
    prototypes = prototypes.to(accumulate_dtype(features.dtype))
    return _loss(features.flatten(2), labels.flatten(1).long(), prototypes, temperature, ignore_index)
