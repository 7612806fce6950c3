"""What a training method consists of, for `python -m toco_kernels memory`: operators at the sizes of its step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..common.errors import bad_value
from ..methods import TKPPCL_COCO, Backbone, FeatureMaps
from ..methods.ppc.feature_maps import STRIDE


@dataclass(frozen=True)
class Setting:
    """The sizes of a step: images of `crop` pixels squared, `classes` without background, `width` channels."""

    crop: int
    batch: int
    classes: int
    width: int

    @property
    def patches(self) -> int:
        """Of an image."""
        return (self.crop // 16) ** 2


@dataclass(frozen=True)
class Operator:
    """An operator of a step, by its bench file.

    Args:
        name: the public function.
        bench: the module that has a `Bench` of it.
        sizes: what that takes, of a setting.
        ours_on_gpu: the module whose operator the method uses on a GPU, where it is another one.
    """

    name: str
    bench: str
    sizes: Callable[[Setting], dict]
    ours_on_gpu: str | None = None

    def module(self, provider: str) -> str:
        """The bench file for a provider, on this machine."""
        other = provider == "toco_kernels" and torch.cuda.is_available()
        return (other and self.ours_on_gpu) or self.bench


@dataclass(frozen=True)
class Method:
    """A method of `whole_step.METHODS`.

    Args:
        backbone: of timm's, where none is asked for.
        width: channels of a backbone's features; an error, where the method cannot have it.
        operators: of its step.
    """

    backbone: str
    width: Callable[[str], int]
    operators: list[Operator]

    def width_of(self, backbone: str) -> int:
        """As `width`, in no time and memory.

        Raises:
            ValueError: it is none of timm's, or not for this method.
        """
        import timm

        if not timm.is_model(backbone):
            raise bad_value("backbone", "be the name of a network that timm has", repr(backbone))
        with torch.device("meta"):
            return self.width(backbone)


def _vit(backbone: str) -> int:
    try:
        return Backbone(backbone).width
    except TypeError:  # a network that has no images of dynamic size
        raise bad_value("backbone", "be one of timm's ViTs", repr(backbone)) from None


def _dilated(backbone: str) -> int:
    return FeatureMaps(backbone).widths[-1]


def _images(s: Setting) -> dict:
    return {"batch": s.batch, "size": s.crop}


def _cams(s: Setting) -> dict:
    return _images(s) | {"classes": s.classes, "present": min(3, s.classes)}


def _logits(s: Setting) -> dict:
    return _images(s) | {"classes": s.classes + 1}


def _side(s: Setting) -> int:
    """Of PPC's grid."""
    return -(-s.crop // STRIDE)


def _patches(s: Setting) -> dict:
    """Of TKP-PCL, whose classes have the background among them."""
    return {"batch": s.batch, "patches": s.patches, "classes": s.classes + 1}


_PPC = [
    Operator(
        "pixel_correlation",
        "bench_pixel_correlation",
        lambda s: {"batch": s.batch, "side": _side(s), "classes": s.classes + 1, "clear": False},
    ),
    Operator(
        "pixel_prototype_contrast",
        "bench_prototype_contrast",
        lambda s: {"batch": s.batch, "side": _side(s), "classes": s.classes + 1},
    ),
]

_SEAM = [
    Operator("seam_losses", "bench_cam_regularization", _cams),
    Operator("adaptive_min_pooling_loss", "bench_cam_regularization", _cams),
]

METHODS = {
    "toco": Method(
        "deit_base_patch16_224",
        _vit,
        [
            Operator("merge_cams_to_labels", "bench_cam", _cams),
            Operator("crop_uncertain", "bench_cam", _images),
            Operator("refine_cam_labels", "bench_affinity_refine", _cams),
            Operator(
                "patch_token_contrast",
                "bench_patch_contrast",
                lambda s: {"batch": s.batch, "patches": s.patches, "width": s.width, "ignored": 0.3},
            ),
            Operator("class_token_contrast", "bench_class_contrast", lambda s: {"batch": s.batch}),
            Operator("segmentation_loss", "bench_cam", _logits),
            Operator("dense_energy_from_logits", "bench_dense_energy", _logits, ours_on_gpu="bench_dense_energy_exact"),
        ],
    ),
    "ppc": Method("resnet50", _dilated, [*_PPC, *_SEAM]),  # on SEAM
    "ppc-eps": Method("resnet50", _dilated, _PPC),
    "tkp-pcl": Method(
        "vit_base_patch16_384",
        _vit,
        [
            Operator("topk_pool", "bench_topk_pool", lambda s: _patches(s) | {"k": TKPPCL_COCO.k}),
            Operator(
                "patch_contrastive_error",
                "bench_patch_contrastive_error",
                lambda s: _patches(s) | {"width": s.width, "form": TKPPCL_COCO.form, "present": min(3, s.classes)},
            ),
        ],
    ),
}
