"""What keeps CAMs in shape while a classifier is trained: the losses of SEAM and EPS on class maps.

Plain PyTorch on every device. Two views of the same images should have the same CAMs (ER), and CAMs should be what
pixel correlation makes of the other view's (ECR, over the 20 % that differ most); the quarter of pixels that show the
image's classes least should not show them at all; objects and background should add up to a saliency map.
"""

from .losses import adaptive_min_pooling_loss, saliency_loss, seam_losses
from .maps import max_norm, max_onehot

__all__ = ["adaptive_min_pooling_loss", "max_norm", "max_onehot", "saliency_loss", "seam_losses"]
