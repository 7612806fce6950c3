"""Top-K pooling: an image's score for a class is the mean of its k largest patch scores.

With z_nc the score of patch n for class c, per image:

    p_c = 1/k Σ z_nc over the k patches with the largest z_nc

Of equal scores the lowest index wins, NaN counts as the largest. k = 1 is global max pooling. `linear_topk_pool` also
computes the scores, z = x W + b or their softmax over classes, patch by patch. TKP-PCL; a single wrong patch shall not
decide, as it does under the max pooling of ViT-PCM.
"""

from .module import LinearTopKPool, TopKPool
from .op import linear_topk_pool, topk_pool

__all__ = ["LinearTopKPool", "TopKPool", "linear_topk_pool", "topk_pool"]
