"""What a training method consists of, for `python -m toco_kernels memory`: operators at the sizes of its step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..methods import Backbone


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


def _images(s: Setting) -> dict:
    return {"batch": s.batch, "size": s.crop}


def _cams(s: Setting) -> dict:
    return _images(s) | {"classes": s.classes, "present": min(3, s.classes)}


def _logits(s: Setting) -> dict:
    return _images(s) | {"classes": s.classes + 1}


METHODS = {
    "toco": [
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
}


def width_of(backbone: str) -> int:
    """The channels of its tokens."""
    with torch.device("meta"):
        return Backbone(backbone).width
