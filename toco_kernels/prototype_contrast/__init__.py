"""Contrast of pixels with the prototypes of classes.

A prototype is the mean feature of the k pixels of a batch that show a class most surely, weighted by their scores, of
length 1. With `s_ic = <v_i / |v_i|, p_c> / τ` for pixels i and classes c:

    loss = mean over pixels of  log Σ_c exp(s_ic) - s_iy          y the pixel's pseudo label

`pixel_prototype_contrast` is all of what PPC (CVPR 2022) adds to a step: two views of the same images, with labels and
prototypes from their CAMs, contrast across views by prototypes and by labels, and within views with semi-hard
prototypes and hard pixels.
"""

from .module import PixelPrototypeContrastLoss, PrototypeContrastLoss
from .op import estimate_prototypes, prototype_contrast
from .step import pixel_prototype_contrast

__all__ = [
    "PixelPrototypeContrastLoss",
    "PrototypeContrastLoss",
    "estimate_prototypes",
    "pixel_prototype_contrast",
    "prototype_contrast",
]
