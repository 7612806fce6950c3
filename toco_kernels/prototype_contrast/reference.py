"""What prototypes and their contrast mean, in plain PyTorch: the published sequence of operations, never optimised.

Sorts are stable, because `topk` leaves open which of two equal scores it keeps; random numbers are arguments.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-12  # below this a norm counts as this
MARGIN = 1e-5  # between the range of a map and what counts as above its minimum
NONE = -torch.inf  # the score of a candidate that does not exist


def unit_vectors(
    rows: Tensor,  # (n, D)
) -> Tensor:  # (n, D)
    """Zero vectors stay zero, and get no gradient: they have no direction that could change."""
    return F.normalize(rows, dim=1, eps=EPSILON) * (rows != 0).any(dim=1, keepdim=True)


def pixels(
    features: Tensor,  # (B, D, P)
) -> Tensor:  # (B * P, D)
    """One row for each pixel."""
    return features.mT.flatten(0, 1)


def prototype_candidates(
    features: Tensor,  # (B, D, P)
    cams: Tensor,  # (B, C, P)
    present: Tensor | None,  # (B, C)
    k: int,
) -> tuple[Tensor, Tensor]:  # (C, k), (C, k, D)
    """The k pixels of the whole batch with the largest scores of each class: their scores and their features.

    Of equal scores, the lowest pixel of the lowest image comes first. Pixels of images that do not show the class do
    not count. Where there are fewer than k, scores of -inf and zero vectors follow.
    """
    scores = cams.transpose(0, 1).flatten(1)  # (C, B * P)
    if present is not None:
        scores = scores.masked_fill((present == 0).T.repeat_interleave(cams.shape[2], dim=1), NONE)
    ranked = scores.sort(dim=1, descending=True, stable=True)
    best, chosen = ranked.values[:, :k], ranked.indices[:, :k]
    vectors = pixels(features)[chosen].masked_fill((best == NONE)[:, :, None], 0)
    missing = k - best.shape[1]
    return F.pad(best, (0, missing), value=NONE), F.pad(vectors, (0, 0, 0, missing))


def prototypes_of(
    scores: Tensor,  # (C, K)
    vectors: Tensor,  # (C, K, D)
) -> Tensor:  # (C, D)
    """The mean of the vectors, weighted by their scores, of length 1; zero where the weights add up to zero."""
    weights = scores.masked_fill(scores == NONE, 0)
    total = weights.sum(dim=1, keepdim=True)
    mean = (weights[:, :, None] * vectors).sum(dim=1) / torch.where(total == 0, 1, total)
    return F.normalize(mean.masked_fill(total == 0, 0), dim=1, eps=EPSILON)


def prototype_contrast(
    features: Tensor,  # (B, D, P)
    labels: Tensor,  # (B, P)
    prototypes: Tensor,  # (C, D)
    temperature: float,
    ignore_index: int,
) -> Tensor:  # ()
    """The mean of -log(exp(s_label) / Σ exp(s)) over pixels that are not ignored, s their cosines over temperature."""
    labels = labels.flatten()
    valid = labels != ignore_index
    rows, labels = pixels(features)[valid], labels[valid]
    if not len(rows):
        return features.new_zeros(())
    scores = torch.exp(unit_vectors(rows) @ prototypes.T / temperature)
    return -torch.log(scores.gather(1, labels[:, None])[:, 0] / scores.sum(dim=1)).mean()


def confidence(
    cams: Tensor,  # (B, C, H, W); class 0 is the background
    background_score: float,
) -> Tensor:  # (B, C, H, W)
    """Maps stretched to 0 … 1, each by its own range; the background's is constant.

    What lies at the minimum, and all of an empty map, becomes negative, as in the published code.
    """
    cams = F.relu(cams)
    low, high = cams.amin(dim=(2, 3), keepdim=True), cams.amax(dim=(2, 3), keepdim=True)
    cams = cams.masked_fill(cams < low + MARGIN, 0)
    cams = (cams - low - MARGIN) / (high - low + MARGIN)
    cams[:, 0] = background_score
    return cams


def pseudo_labels(
    confidences: Tensor,  # (B, C, H, W)
    image_labels: Tensor,  # (B, C - 1) multi-hot, without background
) -> Tensor:  # (B, H, W) int64
    """The class of each pixel that is most confident, of those that the image shows and the background."""
    present = F.pad((image_labels != 0).to(confidences.dtype), (1, 0), value=1)
    return (confidences * present[:, :, None, None]).argmax(dim=1)


def semi_hard_ranks(classes: int) -> tuple[int, int]:
    """Which ranks of prototypes, by similarity, are contrasted with: from 15 % to 60 % of the classes, 3 … 12 of 21."""
    return (15 * classes + 50) // 100, (60 * classes + 50) // 100


def mined_contrast(
    scores: Tensor,  # (n, C) cosines over temperature, of pixels with prototypes of their own view
    labels: Tensor,  # (n)
    draws: Tensor,  # (n)
) -> Tensor:  # ()
    """Contrast with semi-hard prototypes, for hard pixels and as many random ones of each class.

    The label's prototype is not taken out of the ranking. The random half of a class's pixels are those with the lowest
    draws. The hard half are those least similar to their prototype, without the hardest tenth. Pixels can be in both.
    """
    first, last = semi_hard_ranks(scores.shape[1])
    ranked = scores.sort(dim=1, descending=True, stable=True).values[:, first:last]
    positive = scores.gather(1, labels[:, None])
    losses = -torch.log(torch.exp(positive) / torch.exp(torch.cat([positive, ranked], dim=1)).sum(dim=1, keepdim=True))
    losses, positive = losses[:, 0], positive[:, 0]
    total, present = scores.new_zeros(()), labels.unique()
    for c in present:
        chosen = (labels == c).nonzero()[:, 0]
        half, end = len(chosen) // 2, len(chosen) * 6 // 10
        if half:
            drawn = chosen[draws[chosen].sort(stable=True).indices[:half]]
            hard = chosen[positive[chosen].sort(stable=True).indices[end - half : end]]
            total = total + losses[torch.cat([drawn, hard])].mean()
    return total / max(len(present), 1)


def three_terms(
    cosines: tuple[Tensor, Tensor],  # (n, C) of this view's pixels, with its own prototypes and the other view's
    other_cosines: tuple[Tensor, Tensor],  # (n, C) of the other view's pixels, with its own prototypes and this view's
    labels: Tensor,  # (n)
    other_labels: Tensor,  # (n)
    draws: Tensor,  # (2, n)
    temperature: float,
) -> Tensor:  # (3)
    """Cross-prototype contrast, cross-CAM contrast, contrast within views: each the mean of the two views."""
    if not len(labels):
        return draws.new_zeros(3)
    cross_prototype, cross_cam, intra = 0, 0, 0
    views = ((cosines, labels, other_labels, draws[0]), (other_cosines, other_labels, labels, draws[1]))
    for (own, others), mine, theirs, drawn in views:
        cross_prototype = cross_prototype + F.cross_entropy(others / temperature, mine) / 2
        cross_cam = cross_cam + F.cross_entropy(own / temperature, theirs) / 2
        intra = intra + mined_contrast(own / temperature, mine, drawn) / 2
    return torch.stack([cross_prototype, cross_cam, intra])


def cosines(
    features: Tensor,  # (B, D, P)
    own: Tensor,  # (C, D)
    others: Tensor,  # (C, D)
) -> tuple[Tensor, Tensor]:  # (B * P, C), (B * P, C)
    """Of each pixel with the prototypes of its own view, and with those of the other view."""
    unit = unit_vectors(pixels(features))
    return unit @ own.T, unit @ others.T


def resize_corners(
    maps: Tensor,  # (B, D, H, W)
    size: list[int],
) -> Tensor:  # (B, D, h, w)
    """Bilinear, with aligned corners."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)
