"""random_walk as a PyTorch operator."""

import math

import torch
from torch import Tensor

from .._library import accumulate_dtype, define, register_triton
from ..common.checks import check_constant, check_floating, check_same_device, check_tensor
from ..common.errors import bad_value, integer, number
from . import reference
from .attention import WHY_CONSTANT


def _walk(edges: Tensor, cams: Tensor, radius: int, beta: float, steps: int) -> Tensor:
    dtype = accumulate_dtype(cams.dtype)
    return reference.random_walk(edges.to(dtype), cams.to(dtype), radius, beta, steps)


_operator = define(
    "random_walk(Tensor edges, Tensor cams, int radius, float beta, int steps) -> Tensor",
    room="affinity_propagate",
    reference=_walk,
    fake=lambda edges, cams, *_: cams.new_empty(cams.shape, dtype=accumulate_dtype(cams.dtype)),
)
register_triton("random_walk")


def random_walk(
    edges: Tensor,  # (B, 1, H, W) or (B, P, H, W)
    cams: Tensor,  # (B, C, H, W)
    *,
    radius: int = 5,
    beta: float = 8,
    steps: int = 256,
) -> Tensor:  # (B, C, H, W)
    """Class maps after a random walk along learned affinities: the second stage of AffinityNet and IRN.

        a[i, j]   = 1 - the largest edge of the pixels between i and j        (IRN), or the given affinity (AffinityNet)
        T[i, j]   = a[i, j]^beta / Σ over i of a[i, j]^beta;  a[i, i] = 1,  a = 0 from `radius` on
        out[c]    = (cams[c] * (1 - edges)) · T^steps;  AffinityNet: cams[c] · T^steps

    Neighbours are the pixels at a distance below `radius`; the pixels between two of them, both included, are those
    less than 1 away from the line that joins them. It is computed as a sparse stencil, applied `steps` times; published
    code makes the dense N × N matrix and squares it log2(steps) times.

    Args:
        edges: (B, 1, H, W) edges in [0, 1], as IRN predicts; or (B, P, H, W) affinities in [0, 1], as AffinityNet does,
            where channel k is the affinity of (y, x) and (y, x) + `reference.offsets(radius)[k]`: first those to the
            right, then row by row from the left; P is 34 for a radius of 5. What lies beyond the border is not read.
        cams: (B, C, H, W) scores: float32, float64, float16 or bfloat16; computed in float32 (float64 for float64).
        radius: in pixels, >= 1.
        beta: the exponent of affinities, > 0. IRN 10, AffinityNet and SEAM 8.
        steps: the power of the matrix, >= 0: 256 = 2^8 in IRN and AffinityNet (`exp_times`, `logt` of 8), 64 in SEAM.

    Returns:
        (B, C, H, W) in the dtype of `cams`, without a gradient.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, a number is out of range, or a tensor requires a gradient: pseudo labels
            are made without.

    Complexity: O(steps · H W P C) time; P numbers for each pixel of one image, and two copies of its maps; on a GPU
    those of all images.

    Source: Ahn & Kwak, Learning Pixel-level Semantic Affinity (AffinityNet), CVPR 2018; Ahn et al., Weakly Supervised
    Learning of Instance Segmentation with Inter-pixel Relations (IRN), CVPR 2019.
    """
    check_tensor(edges, "edges", 4, "(B, 1, H, W) or (B, P, H, W)")
    check_tensor(cams, "cams", 4, "(B, C, H, W)")
    check_same_device(edges, "edges", cams, "cams")
    for name, tensor in (("edges", edges), ("cams", cams)):
        check_floating(tensor, name)
        check_constant(tensor, name, WHY_CONSTANT)
    radius, steps = integer(radius, "radius", least=1), integer(steps, "steps", least=0)
    beta = number(beta, "beta")
    if not 0 < beta < math.inf:
        raise bad_value("beta", "be > 0 and finite", beta)
    batch, _, height, width = cams.shape
    if (edges.shape[0], *edges.shape[2:]) != (batch, height, width):
        raise bad_value("edges", f"have cams' batch and size, {(batch, height, width)}", f"shape {tuple(edges.shape)}")
    if edges.shape[1] != 1 and edges.shape[1] != len(reference.offsets(radius)):
        must = f"have 1 channel, or {len(reference.offsets(radius))} affinities for a radius of {radius}"
        raise bad_value("edges", must, f"shape {tuple(edges.shape)}")
    dtype = torch.promote_types(edges.dtype, cams.dtype)
    return _operator(edges.to(dtype), cams.to(dtype), radius, beta, steps).to(cams.dtype)
