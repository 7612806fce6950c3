"""Fused kernels and drop-in training modules for weakly-supervised semantic segmentation.

Dimensions, everywhere in this package: `B` images, `N` patches, `D` channels, `C` classes, `H W` pixels, `K` kept,
`T` iterations, `P` neighbours.

Names are loaded on first use, so that `import toco_kernels.numpy` in a worker process never imports torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

ROOMS = {  # one folder per operator, and what it adds to the public API
    "affinity_propagate": ("component_boxes", "propagate_attention", "random_walk"),
    "affinity_refine": ("PAMR", "PAR", "affinity_refine", "refine_cam_labels"),
    "cam": (
        "SegmentationLoss",
        "cam_to_label",
        "cam_to_roi",
        "crop_uncertain",
        "merge_cams",
        "merge_cams_to_labels",
        "merge_cams_to_roi",
        "patch_boxes",
        "segmentation_loss",
    ),
    "cam_regularization": (
        "adaptive_min_pooling_loss",
        "max_norm",
        "max_onehot",
        "saliency_loss",
        "seam_losses",
    ),
    "class_contrast": ("ClassTokenContrastLoss", "class_token_contrast", "update_ema_"),
    "dense_energy": (
        "DenseCRF",
        "DenseEnergyLoss",
        "bilateral_filter",
        "dense_crf",
        "dense_energy",
        "dense_energy_from_logits",
    ),
    "pair_contrast": ("affinity_loss", "contrast"),
    "patch_contrast": (
        "PatchContrastiveErrorLoss",
        "PatchTokenContrastLoss",
        "patch_contrastive_error",
        "patch_token_contrast",
    ),
    "pixel_correlation": ("correlation_maps", "pixel_correlation"),
    "prototype_contrast": (
        "PixelPrototypeContrastLoss",
        "PrototypeContrastLoss",
        "estimate_prototypes",
        "pixel_prototype_contrast",
        "prototype_contrast",
    ),
    "topk_pool": ("LinearTopKPool", "TopKPool", "linear_topk_pool", "topk_pool"),
}
_ROOM_OF = {name: room for room, names in ROOMS.items() for name in names}

__all__ = sorted(_ROOM_OF)

if TYPE_CHECKING:
    from .affinity_propagate import component_boxes as component_boxes
    from .affinity_propagate import propagate_attention as propagate_attention
    from .affinity_propagate import random_walk as random_walk
    from .affinity_refine import PAMR as PAMR
    from .affinity_refine import PAR as PAR
    from .affinity_refine import affinity_refine as affinity_refine
    from .affinity_refine import refine_cam_labels as refine_cam_labels
    from .cam import SegmentationLoss as SegmentationLoss
    from .cam import cam_to_label as cam_to_label
    from .cam import cam_to_roi as cam_to_roi
    from .cam import crop_uncertain as crop_uncertain
    from .cam import merge_cams as merge_cams
    from .cam import merge_cams_to_labels as merge_cams_to_labels
    from .cam import merge_cams_to_roi as merge_cams_to_roi
    from .cam import patch_boxes as patch_boxes
    from .cam import segmentation_loss as segmentation_loss
    from .cam_regularization import adaptive_min_pooling_loss as adaptive_min_pooling_loss
    from .cam_regularization import max_norm as max_norm
    from .cam_regularization import max_onehot as max_onehot
    from .cam_regularization import saliency_loss as saliency_loss
    from .cam_regularization import seam_losses as seam_losses
    from .class_contrast import ClassTokenContrastLoss as ClassTokenContrastLoss
    from .class_contrast import class_token_contrast as class_token_contrast
    from .class_contrast import update_ema_ as update_ema_
    from .dense_energy import DenseCRF as DenseCRF
    from .dense_energy import DenseEnergyLoss as DenseEnergyLoss
    from .dense_energy import bilateral_filter as bilateral_filter
    from .dense_energy import dense_crf as dense_crf
    from .dense_energy import dense_energy as dense_energy
    from .dense_energy import dense_energy_from_logits as dense_energy_from_logits
    from .pair_contrast import affinity_loss as affinity_loss
    from .pair_contrast import contrast as contrast
    from .patch_contrast import PatchContrastiveErrorLoss as PatchContrastiveErrorLoss
    from .patch_contrast import PatchTokenContrastLoss as PatchTokenContrastLoss
    from .patch_contrast import patch_contrastive_error as patch_contrastive_error
    from .patch_contrast import patch_token_contrast as patch_token_contrast
    from .pixel_correlation import correlation_maps as correlation_maps
    from .pixel_correlation import pixel_correlation as pixel_correlation
    from .prototype_contrast import PixelPrototypeContrastLoss as PixelPrototypeContrastLoss
    from .prototype_contrast import PrototypeContrastLoss as PrototypeContrastLoss
    from .prototype_contrast import estimate_prototypes as estimate_prototypes
    from .prototype_contrast import pixel_prototype_contrast as pixel_prototype_contrast
    from .prototype_contrast import prototype_contrast as prototype_contrast
    from .topk_pool import LinearTopKPool as LinearTopKPool
    from .topk_pool import TopKPool as TopKPool
    from .topk_pool import linear_topk_pool as linear_topk_pool
    from .topk_pool import topk_pool as topk_pool


def __getattr__(name: str):
    if name in _ROOM_OF:
        return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    if name in ROOMS or name in ("compat", "memory", "methods", "numpy", "testing"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]


class _Package(ModuleType):
    """Where a room and its function share a name, `toco_kernels.<name>` is the function, whoever imports first."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _ROOM_OF and isinstance(value, ModuleType):  # the import system binds the room here
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
