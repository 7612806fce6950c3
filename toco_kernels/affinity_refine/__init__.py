"""Refinement by affinity: class maps flow between neighbouring pixels of like colour, up to the borders of objects.

Each pixel x has P = 8 * len(dilations) neighbours x + k, clamped to the image. Masks are averaged over them, again and
again, with weights that depend on the image alone:

    masks(x) <- sum over k of w_k(x) * masks(x + k)                                  `iterations` times

PAR (Ru et al., CVPR 2022), with d_k = |I(x + k) - I(x)|, σ the unbiased deviation of the P neighbours of x, and r_k the
distance of neighbour k (dilation * 1 or √2), σ_r its deviation over k:

    w = softmax_k(-mean over colours of (d_k / (σ + 1e-8) / 0.3)²) + 0.01 * softmax_k(-(r_k / (σ_r + 1e-8) / 0.3)²)

so weights sum to 1.01. PAMR (Araslanov & Roth, CVPR 2020), with σ the unbiased deviation of the neighbours and of x
itself, which counts once per dilation:

    w = softmax_k(-mean over colours of d_k / (1e-8 + 0.1 σ))
"""

from .labels import refine_cam_labels
from .module import PAMR, PAR
from .op import affinity_refine

__all__ = ["PAMR", "PAR", "affinity_refine", "refine_cam_labels"]
