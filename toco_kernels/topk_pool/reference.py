"""What top-K pooling means, in plain PyTorch: the published sequence of operations, never optimised.

A stable sort instead of `topk`, because `topk` leaves open which of two equal scores it keeps.
"""

import torch
from torch import Tensor


def ranking(scores: Tensor) -> Tensor:  # (B, N, C) -> (B, N, C) int64
    """The patches of each class from the largest score to the smallest: NaN first, of equals the lowest index first."""
    return scores.sort(dim=1, descending=True, stable=True).indices


def topk_pool(
    scores: Tensor,  # (B, N, C)
    k: "int | Tensor",  # (B, C), in 1 … N
) -> Tensor:  # (B, C)
    """The mean of the k largest scores of each class."""
    ranked = scores.gather(1, ranking(scores))
    if not isinstance(k, Tensor):
        return ranked[:, :k].mean(1)
    kept = torch.arange(scores.shape[1], device=k.device)[:, None] < k[:, None]  # (B, N, C)
    return ranked.masked_fill(~kept, 0).sum(1) / k


def class_scores(
    tokens: Tensor,  # (B, N, D)
    weight: Tensor,  # (D, C)
    bias: Tensor | None,  # (C)
    softmax: bool,
) -> Tensor:  # (B, N, C)
    """The classifier's logits for each patch, or its probabilities: the softmax is over classes, per patch."""
    scores = tokens @ weight
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=2) if softmax else scores


def linear_topk_pool(
    tokens: Tensor,  # (B, N, D)
    weight: Tensor,  # (D, C)
    k: "int | Tensor",  # (B, C), in 1 … N
    bias: Tensor | None = None,  # (C)
    softmax: bool = False,
) -> Tensor:  # (B, C)
    """Classify, then pool."""
    return topk_pool(class_scores(tokens, weight, bias, softmax), k)
