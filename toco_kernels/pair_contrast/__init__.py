"""Contrast of pairs of tokens by their labels: those with one label should be alike, the others not.

No N × N matrix is stored: pairs are met in tiles, which go into the loss and the gradient at once.

`affinity_loss`, AFA (CVPR 2022), as WeCLIP and ExCEL take it from features: with `A_ij = sigmoid(<f_i, f_j>)` over
ordered pairs of one image, i = j included, and their counts n+ and n- over the whole batch:

    loss = 1/2 Σ_same (1 - A_ij) / (n+ + 1) + 1/2 Σ_different A_ij / (n- + 1)

`contrast` compares tokens x with other tokens y, say a queue, class tokens or text prototypes: by |cos|, by that
sigmoid or by InfoNCE.
"""

from .op import affinity_loss, contrast

__all__ = ["affinity_loss", "contrast"]
