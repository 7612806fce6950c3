"""Contrast of patch tokens by their pseudo labels.

The kernels keep at most two bits for each pair of patches, and no N × N matrix of numbers. On GPUs below compute
capability 8.0, in float64 on a GPU and where no kernel is built, the reference answers, which does have the matrices.

`patch_token_contrast`, ToCo (CVPR 2023): with c_ij = |cos(x_i, x_j)| over ordered pairs i ≠ j of one image, pairs with
an ignored patch excluded, and their counts n+ and n- over the whole batch:

    loss = 1/2 (1 - Σ_same c_ij / (n+ + 1)) + 1/2 Σ_different c_ij / (n- + 1)

`patch_contrastive_error`, TKP-PCL: per image and class, patches with a high score attract each other and repel
those with a low score, with S'_ij = (1 + cos(x_i, x_j)) / 2:

    loss = mean over high pairs of (1 - S'_ij) + mean over high and low of S'_ij
"""

from .module import PatchContrastiveErrorLoss, PatchTokenContrastLoss
from .op import patch_contrastive_error, patch_token_contrast

__all__ = [
    "PatchContrastiveErrorLoss",
    "PatchTokenContrastLoss",
    "patch_contrastive_error",
    "patch_token_contrast",
]
