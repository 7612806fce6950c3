"""What the losses over pairs mean, in plain PyTorch: the published sequence of operations, never optimised."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-12  # below this a norm counts as this


def unit_vectors(
    tokens: Tensor,  # (B, N, D)
) -> Tensor:  # (B, N, D)
    """Zero vectors stay zero, and get no gradient: they have no direction that could change."""
    return F.normalize(tokens, dim=2, eps=EPSILON) * (tokens != 0).any(dim=2, keepdim=True)


def within_radius(
    tokens: int,  # N
    grid_width: int,  # tokens in a row of the grid
    radius: int,
    device: torch.device,
) -> Tensor:  # (N, N) bool
    """Which tokens lie at most `radius` rows and `radius` columns apart."""
    place = torch.arange(tokens, device=device)
    row, column = place // max(grid_width, 1), place % max(grid_width, 1)
    return torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs()) <= radius


def balanced_loss(
    likeness: Tensor,  # (B, N, M) in [0, 1]
    same: Tensor,  # (B, N, M) bool
    different: Tensor,  # (B, N, M) bool
) -> Tensor:  # ()
    """Half the mean of 1 - likeness over pairs alike, half that of likeness over the others; counts have one added."""
    positive = (same * (1 - likeness)).sum() / (same.sum() + 1)
    negative = (different * likeness).sum() / (different.sum() + 1)
    return 0.5 * positive + 0.5 * negative


def affinity_loss(
    features: Tensor,  # (B, N, D)
    labels: Tensor,  # (B, N)
    grid_width: int,
    radius: int,  # < 0: any distance
    scale: float,
    normalize: bool,
    center: bool,
    ignore_index: int,
) -> Tensor:  # ()
    """`balanced_loss` of the sigmoid of all scores. Ignored tokens are cleared first, unless the mean needs them."""
    valid = labels != ignore_index
    if not center:
        features = features.masked_fill(~valid[:, :, None], 0)
    if normalize:
        features = unit_vectors(features)
    scores = features @ features.mT
    if center:
        scores = scores - scores.mean()
    counts = valid[:, :, None] & valid[:, None]
    if radius >= 0:
        counts = counts & within_radius(labels.shape[1], grid_width, radius, labels.device)
    same = labels[:, :, None] == labels[:, None]
    return balanced_loss((scores * scale).sigmoid(), same & counts, ~same & counts)


def contrast(
    x: Tensor,  # (B, N, D)
    y: Tensor,  # (B, M, D)
    labels_x: Tensor,  # (B, N)
    labels_y: Tensor,  # (B, M)
    form: str,
    scale: float,  # 1 / temperature
    normalize: bool,
    ignore_index: int,
) -> Tensor:  # ()
    """As the public function says. Tokens that take no part are cleared first: their NaN times 0 would be NaN."""
    valid_x, valid_y = labels_x != ignore_index, labels_y != ignore_index
    same = (labels_x[:, :, None] == labels_y[:, None]) & valid_x[:, :, None] & valid_y[:, None]
    if form == "info_nce":
        valid_x = same.any(dim=2)  # without a positive there is nothing to compare
    valid = valid_x[:, :, None] & valid_y[:, None]
    x, y = x.masked_fill(~valid_x[:, :, None], 0), y.masked_fill(~valid_y[:, :, None], 0)
    if normalize:
        x, y = unit_vectors(x), unit_vectors(y)
    scores = x @ y.mT * scale
    if form == "sigmoid":
        return balanced_loss(scores.sigmoid(), same, ~same & valid)
    if form == "abs_cos":
        different = ~same & valid
        positive = (same * scores.abs()).sum() / (same.sum() + 1)
        return 0.5 * (1 - positive) + 0.5 * (different * scores.abs()).sum() / (different.sum() + 1)
    compared = valid | ~valid_x[:, :, None]  # rows that take no part stay finite, and get the weight 0
    logs = scores.masked_fill(~compared, -torch.inf).log_softmax(dim=2)
    losses = logs.masked_fill(~same, 0).sum(dim=2) / same.sum(dim=2).clamp_min(1)
    return -losses.sum() / valid_x.sum().clamp_min(1)
