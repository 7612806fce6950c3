"""What keeps CAMs in shape while a classifier is trained: the losses of SEAM and EPS on class maps.

Two views of the same images should have the same CAMs (ER), and CAMs should be what
pixel correlation makes of the other view's (ECR, over the 20 % that differ most); the quarter of pixels that show the
image's classes least should not show them at all; objects and background should add up to a saliency map.

The losses of SEAM are operators: maps stretched to the size of the images, of which SEAM keeps a dozen for each class,
come into being row by row, for the classes that an image shows. The others are plain PyTorch on every device.
"""

from .maps import max_norm, max_onehot
from .op import adaptive_min_pooling_loss, seam_losses
from .saliency import saliency_loss

__all__ = ["adaptive_min_pooling_loss", "max_norm", "max_onehot", "saliency_loss", "seam_losses"]
