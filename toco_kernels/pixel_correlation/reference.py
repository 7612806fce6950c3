"""What pixel_correlation means, in plain PyTorch: the published sequence of operations, never optimised."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5  # is added to norms, and to sums of similarities
WORD = 32  # pixels whose signs are one number


def cosines(
    features: Tensor,  # (B, D, N)
) -> Tensor:  # (B, N, N)
    """Of all pairs of pixels of an image; a little less than cosines where features are short."""
    unit = features / (features.norm(dim=1, keepdim=True) + EPSILON)
    return unit.mT @ unit


def pixel_correlation(
    features: Tensor,  # (B, D, N)
    cams: Tensor,  # (B, C, N)
) -> Tensor:  # (B, C, N)
    """For each pixel the mean of the scores of all pixels, weighted by how similar they are."""
    similar = F.relu(cosines(features))
    return cams @ (similar / (similar.sum(dim=1, keepdim=True) + EPSILON))


def words(n: int) -> int:
    """How many numbers hold n bits."""
    return (n + WORD - 1) // WORD


def signs(
    features: Tensor,  # (B, D, N)
) -> Tensor:  # (B, N, words) int32
    """Which cosines are positive: bit j % 32 of word j // 32."""
    positive = (cosines(features) > 0).long()
    bits = F.pad(positive, (0, -positive.shape[2] % WORD)).unflatten(2, (-1, WORD))
    return (bits << torch.arange(WORD, device=features.device)).sum(dim=3).to(torch.int32)
