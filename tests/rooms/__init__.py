"""Sample inputs of every room. tests/test_contract.py holds each room to the same clauses."""

from .affinity_refine import AFFINITY_REFINE, REFINE_CAM_LABELS, label_inputs, refine_inputs
from .class_contrast import CLASS_CONTRAST, class_contrast_inputs
from .dense_energy import DENSE_ENERGY, crf_inputs, energy_inputs, logit_inputs
from .patch_contrast import PATCH_CONTRASTIVE_ERROR, PATCH_TOKEN_CONTRAST, error_inputs, token_inputs
from .room import Room, needs_kernel

ROOMS = [
    AFFINITY_REFINE,
    CLASS_CONTRAST,
    *DENSE_ENERGY,
    PATCH_CONTRASTIVE_ERROR,
    PATCH_TOKEN_CONTRAST,
    REFINE_CAM_LABELS,
]

__all__ = [
    "AFFINITY_REFINE",
    "CLASS_CONTRAST",
    "DENSE_ENERGY",
    "PATCH_CONTRASTIVE_ERROR",
    "PATCH_TOKEN_CONTRAST",
    "REFINE_CAM_LABELS",
    "ROOMS",
    "Room",
    "class_contrast_inputs",
    "crf_inputs",
    "energy_inputs",
    "error_inputs",
    "label_inputs",
    "logit_inputs",
    "needs_kernel",
    "refine_inputs",
    "token_inputs",
]
