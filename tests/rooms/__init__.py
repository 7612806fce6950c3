"""Sample inputs of every room. tests/test_contract.py holds each room to the same clauses."""

from .affinity_propagate import COMPONENT_BOXES, PROPAGATE_ATTENTION, RANDOM_WALK
from .affinity_refine import AFFINITY_REFINE, REFINE_CAM_LABELS, label_inputs, refine_inputs
from .cam import (
    BOXES,
    CAM_TO_LABEL,
    CAM_TO_ROI,
    MERGE_CAMS,
    MERGE_CAMS_TO_LABELS,
    MERGE_CAMS_TO_ROI,
    cam_inputs,
    map_inputs,
)
from .cam_regularization import ADAPTIVE_MIN_POOLING, SEAM_LOSSES, pooling_inputs, seam_inputs
from .cam_training import CROP_UNCERTAIN, SEGMENTATION_LOSS, crop_inputs
from .class_contrast import CLASS_CONTRAST, class_contrast_inputs
from .dense_energy import DENSE_ENERGY, crf_inputs, energy_inputs, filter_inputs, logit_inputs
from .pair_contrast import AFFINITY_LOSS, CONTRAST, affinity_inputs, pair_inputs
from .patch_contrast import PATCH_CONTRASTIVE_ERROR, PATCH_TOKEN_CONTRAST, error_inputs, token_inputs
from .pixel_correlation import PIXEL_CORRELATION, correlation_inputs
from .prototype_contrast import (
    ESTIMATE_PROTOTYPES,
    PIXEL_PROTOTYPE_CONTRAST,
    PROTOTYPE_CONTRAST,
    contrast_inputs,
    prototype_inputs,
    step_inputs,
)
from .room import Room, needs_kernel
from .topk_pool import LINEAR_TOPK_POOL, TOPK_POOL, linear_inputs, own_counts, pool_inputs

ROOMS = [
    ADAPTIVE_MIN_POOLING,
    AFFINITY_LOSS,
    AFFINITY_REFINE,
    COMPONENT_BOXES,
    PROPAGATE_ATTENTION,
    RANDOM_WALK,
    CAM_TO_LABEL,
    CAM_TO_ROI,
    CLASS_CONTRAST,
    CONTRAST,
    CROP_UNCERTAIN,
    ESTIMATE_PROTOTYPES,
    LINEAR_TOPK_POOL,
    MERGE_CAMS,
    MERGE_CAMS_TO_LABELS,
    MERGE_CAMS_TO_ROI,
    *DENSE_ENERGY,
    PATCH_CONTRASTIVE_ERROR,
    PATCH_TOKEN_CONTRAST,
    PIXEL_CORRELATION,
    PIXEL_PROTOTYPE_CONTRAST,
    PROTOTYPE_CONTRAST,
    REFINE_CAM_LABELS,
    SEAM_LOSSES,
    SEGMENTATION_LOSS,
    TOPK_POOL,
]

__all__ = [
    "ADAPTIVE_MIN_POOLING",
    "AFFINITY_LOSS",
    "AFFINITY_REFINE",
    "BOXES",
    "CAM_TO_LABEL",
    "CAM_TO_ROI",
    "CLASS_CONTRAST",
    "CONTRAST",
    "CROP_UNCERTAIN",
    "DENSE_ENERGY",
    "ESTIMATE_PROTOTYPES",
    "LINEAR_TOPK_POOL",
    "MERGE_CAMS",
    "MERGE_CAMS_TO_LABELS",
    "MERGE_CAMS_TO_ROI",
    "PATCH_CONTRASTIVE_ERROR",
    "PATCH_TOKEN_CONTRAST",
    "PIXEL_CORRELATION",
    "PIXEL_PROTOTYPE_CONTRAST",
    "PROTOTYPE_CONTRAST",
    "REFINE_CAM_LABELS",
    "ROOMS",
    "SEAM_LOSSES",
    "SEGMENTATION_LOSS",
    "TOPK_POOL",
    "Room",
    "affinity_inputs",
    "cam_inputs",
    "class_contrast_inputs",
    "contrast_inputs",
    "correlation_inputs",
    "crf_inputs",
    "crop_inputs",
    "energy_inputs",
    "error_inputs",
    "filter_inputs",
    "label_inputs",
    "linear_inputs",
    "logit_inputs",
    "map_inputs",
    "needs_kernel",
    "own_counts",
    "pair_inputs",
    "pool_inputs",
    "pooling_inputs",
    "prototype_inputs",
    "refine_inputs",
    "seam_inputs",
    "step_inputs",
    "token_inputs",
]
