"""AffinityNet's losses, for a network of anyone's."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ...common.checks import check_floating, check_same_device, check_tensor
from ...common.errors import bad_type, bad_value
from ...common.group import gathered
from .config import AFFINITY_NET, AFFINITY_NET_LOSSES, AffinityNetConfig
from .pairs import offsets, pair_kinds

EPSILON = 1e-5


class AffinityNetOutput(NamedTuple):
    """What a training step gives.

    Args:
        loss: () the weighted sum of the losses, to call `backward` on.
        losses: `background`, `foreground` and `negative`, each () and not weighted.
        affinities: (B, P, h, w) of the pixels of the network's grid to their neighbours, with their graph.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    affinities: Tensor


def affinity_net_losses(
    affinities: Tensor,  # (B, P, H, W)
    labels: Tensor,  # (B, H, W)
    *,
    config: AffinityNetConfig = AFFINITY_NET,
    process_group: "dist.ProcessGroup | None" = None,
) -> AffinityNetOutput:
    """What affinities cost, of pairs whose labels are known.

        background = Σ of pairs, both background,          -log(a + 1e-5)        / (their number + 1e-5)
        foreground = Σ of pairs, both of one object class, -log(a + 1e-5)        / (their number + 1e-5)
        negative   = Σ of pairs of different labels,       -log(1 + 1e-5 - a)    / (their number + 1e-5)
        loss       = background / 4 + foreground / 4 + negative / 2

    Args:
        affinities: (B, P, H, W) in [0, 1], of `pair_affinity`; float32 or float64; differentiable.
        labels: (B, H, W) integers on the same grid: 0 background, 255 where nobody is sure, which no pair is made of.
        config: of which `weights`, `radius` and `inner_pairs` are used.
        process_group: None, or the processes whose batches are one: numbers of pairs are those of all of them.

    Returns:
        The output; its `affinities` are those given.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices are not as above.

    Source: Ahn & Kwak, AffinityNet, CVPR 2018, equations 4 to 7.
    """
    check_tensor(affinities, "affinities", 4, "(B, P, H, W)")
    check_floating(affinities, "affinities")
    check_tensor(labels, "labels", 3, "(B, H, W)")
    check_same_device(labels, "labels", affinities, "affinities")
    if labels.is_floating_point() or labels.is_complex():
        raise bad_type("labels", "be integers", labels.dtype)
    pairs = len(offsets(config.radius))
    if affinities.shape[1] != pairs:
        must = f"have a channel for each of the {pairs} neighbours within a radius of {config.radius}"
        raise bad_value("affinities", must, f"shape {tuple(affinities.shape)}")
    grid = (affinities.shape[0], *affinities.shape[2:])
    if labels.shape != grid:
        raise bad_value("labels", f"have the affinities' batch and grid, {grid}", f"shape {tuple(labels.shape)}")
    every, known = affinities, labels.long()
    if process_group is not None:
        every, known = gathered(every, process_group), gathered(known, process_group)
    background, foreground, negative = pair_kinds(known, config.radius, config.inner_pairs)
    losses = {}
    for name, chosen in zip(AFFINITY_NET_LOSSES, (background, foreground, negative), strict=True):
        likely = 1 - every if name == "negative" else every
        terms = -(torch.where(chosen, likely, 1) + EPSILON).log() * chosen  # others are not read, were they NaN
        losses[name] = terms.sum() / (chosen.sum() + EPSILON)
    loss = sum(config.weights[name] * losses[name] for name in losses)
    return AffinityNetOutput(loss, losses, affinities)
