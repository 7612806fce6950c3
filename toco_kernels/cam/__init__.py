"""Class activation maps (CAMs): merging scales and flips, labels and regions from them, crops in doubt, and the loss.

`merge_cams`, ToCo (CVPR 2023): with x_s the small maps of scale s, x'_s those of the mirrored image, and ↑ bilinear
interpolation to full size (without aligned corners),

    m   = Σ_s relu(max(↑x_s, mirror(↑x'_s)))
    cam = (m - min m) / (max (m - min m) + 1e-5)                       per image and class, over its pixels

`cam_to_label`, `cam_to_roi`: with v = max over classes of the CAM, absent classes counting as 0,

    label = 0 where v <= low, ignored where low < v <= high, 1 + argmax elsewhere;      ignored outside of the box
    roi   = 2 where v >= high, 0 where v <= low, 1 elsewhere

`segmentation_loss`: half of the mean cross-entropy of background pixels and half of that of object pixels.
"""

from .crops import crop_uncertain
from .labels import cam_to_label, cam_to_roi, patch_boxes
from .loss import segmentation_loss
from .merge import merge_cams, merge_cams_to_labels, merge_cams_to_roi
from .module import SegmentationLoss

__all__ = [
    "SegmentationLoss",
    "cam_to_label",
    "cam_to_roi",
    "crop_uncertain",
    "merge_cams",
    "merge_cams_to_labels",
    "merge_cams_to_roi",
    "patch_boxes",
    "segmentation_loss",
]
