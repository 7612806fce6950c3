"""Dense energy: pixels that are close in position and colour should have the same class. And the dense CRF.

With the affinity of two pixels, K_ij = exp(-|x_i - x_j|² / (2 σ_xy²) - |I_i - I_j|² / (2 σ_rgb²)):

    energy = -1/B Σ_images Σ_k Σ_i S'_ik G_i (K S'_k)_i          S' = S * roi
    G_i    = max(roi_i - max_k S_ik, 0), and 1 where there is no label

The published gradient, dS = -2/B G (K S') roi, treats G and K S' as constants. ToCo, AFA (CVPR 2022, 2023) and rloss
(Tang et al., ECCV 2018).

`kernel` says what K S' is, and has no default, because the two are different functions:

* "exact" is the sum above over all pairs of pixels: quadratic in pixels.
* "lattice" is what the published code computes: a permutohedral lattice, linear in pixels. On photographs it returns
  about 0.60 of the exact sum, and after that factor is off by a further 6 to 10 %. So 0.60 times the exact energy goes
  with weights that were tuned on the lattice, and no factor makes the two equal.

`dense_crf` is mean-field inference with the same filters (Krähenbühl & Koltun, NIPS 2011).
"""

from .filters import bilateral_filter, dense_crf
from .module import DenseCRF, DenseEnergyLoss
from .op import dense_energy, dense_energy_from_logits

__all__ = [
    "DenseCRF",
    "DenseEnergyLoss",
    "bilateral_filter",
    "dense_crf",
    "dense_energy",
    "dense_energy_from_logits",
]
