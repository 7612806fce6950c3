"""What the patch contrasts mean, in plain PyTorch: the published sequence of operations, never optimised."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8  # below this a norm counts as this
LEAST = 1e-6  # of what a logarithm is taken of


def affinity_mask(
    labels: Tensor,  # (B, N)
    ignore_index: int,
    excluded: int = 255,
) -> Tensor:  # (B, N, N) int64
    """1 where labels are the same, 0 where they differ, `excluded` on the diagonal and beside ignored patches."""
    mask = (labels[:, None] == labels[:, :, None]).long()
    ignored = labels == ignore_index
    mask = mask.masked_fill(ignored[:, None] | ignored[:, :, None], excluded)
    return mask.masked_fill(torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device), excluded)


def masked_contrast(
    tokens: Tensor,  # (B, N, D)
    mask: Tensor,  # (B, N, N): 1 same, 0 different, others ignored
    pairs: Tensor | None = None,  # (2): how many of each, where they are not counted here
) -> Tensor:  # ()
    """Half of one minus the mean |cosine| of pairs alike, and half the mean |cosine| of pairs that differ."""
    unit = F.normalize(tokens, dim=2, eps=EPSILON)
    cosines = (unit @ unit.mT).abs()
    same, different = mask == 1, mask == 0
    if pairs is None:
        pairs = same.sum(), different.sum()
    positive = (same * cosines).sum() / (pairs[0] + 1)
    negative = (different * cosines).sum() / (pairs[1] + 1)
    return 0.5 * (1 - positive) + 0.5 * negative


def patch_token_contrast(
    tokens: Tensor,  # (B, N, D)
    labels: Tensor,  # (B, N)
    pairs: Tensor | None,  # (2)
    ignore_index: int,
) -> Tensor:  # ()
    """`masked_contrast` of the labels' mask. Ignored tokens are cleared first: their NaN times 0 would be NaN."""
    tokens = tokens.masked_fill((labels == ignore_index)[:, :, None], 0)
    return masked_contrast(tokens, affinity_mask(labels, ignore_index), pairs)


def unit_vectors(
    tokens: Tensor,  # (n, D)
) -> Tensor:  # (n, D)
    """Zero vectors stay zero, and get no gradient: they have no direction that could change."""
    return F.normalize(tokens, dim=1, eps=EPSILON) * (tokens != 0).any(dim=1, keepdim=True)


def patch_contrastive_error(
    tokens: Tensor,  # (B, N, D)
    scores: Tensor,  # (B, N, C)
    classes: Tensor,  # (B, C), not 0 where present
    threshold: float,
    form: str,
) -> Tensor:  # ()
    """The formula of the room's docstring, image by image and class by class."""
    positive, negative = [], []
    for b, c in classes.nonzero().tolist():
        high = unit_vectors(tokens[b][scores[b, :, c] > threshold])
        low = unit_vectors(tokens[b][scores[b, :, c] < 1 - threshold])
        alike, apart = (1 + high @ high.T) / 2, (1 + high @ low.T) / 2
        if form == "log":
            alike, apart = -alike.clamp_min(LEAST).log(), -(1 - apart).clamp_min(LEAST).log()
        else:
            alike = 1 - alike
        if len(high) > 1:
            others = ~torch.eye(len(high), dtype=torch.bool, device=high.device)
            positive.append((alike * others).sum() / others.sum())
        if apart.numel():
            negative.append(apart.mean())
    return sum((torch.stack(terms).mean() for terms in (positive, negative) if terms), tokens.new_zeros(()))
