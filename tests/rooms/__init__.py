"""Sample inputs of every room. tests/test_contract.py holds each room to the same clauses."""

from .affinity_refine import AFFINITY_REFINE, REFINE_CAM_LABELS, label_inputs, refine_inputs
from .class_contrast import CLASS_CONTRAST, class_contrast_inputs
from .patch_contrast import PATCH_CONTRASTIVE_ERROR, PATCH_TOKEN_CONTRAST, error_inputs, token_inputs
from .room import Room, needs_kernel
from .topk_pool import LINEAR_TOPK_POOL, TOPK_POOL, linear_inputs, own_counts, pool_inputs

ROOMS = [
    AFFINITY_REFINE,
    CLASS_CONTRAST,
    LINEAR_TOPK_POOL,
    PATCH_CONTRASTIVE_ERROR,
    PATCH_TOKEN_CONTRAST,
    REFINE_CAM_LABELS,
    TOPK_POOL,
]

__all__ = [
    "AFFINITY_REFINE",
    "CLASS_CONTRAST",
    "LINEAR_TOPK_POOL",
    "PATCH_CONTRASTIVE_ERROR",
    "PATCH_TOKEN_CONTRAST",
    "REFINE_CAM_LABELS",
    "ROOMS",
    "TOPK_POOL",
    "Room",
    "class_contrast_inputs",
    "error_inputs",
    "label_inputs",
    "linear_inputs",
    "needs_kernel",
    "own_counts",
    "pool_inputs",
    "refine_inputs",
    "token_inputs",
]
