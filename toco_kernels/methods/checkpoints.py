"""Checkpoints that were released with the paper's code.

Their layout: `encoder` with timm's names, `classifier` and `aux_classifier` as 1 x 1 convolutions, `decoder.conv6` to
`conv8`, and `proj_head` and its teacher `proj_head_t` as in DINO. Tried with the state of the authors' own network with
random weights: all outputs agree to 2e-6. No released file was at hand; one that differs is refused, with its keys.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..common.errors import bad_value
from .config import COCO, VOC, ToCoConfig
from .toco import ToCo

# Width of the backbone -> a name with its shapes. DeiT and ViT have the same, so the weights do not say which it was.
BACKBONES = {
    192: "deit_tiny_patch16_224.fb_in1k",
    384: "deit_small_patch16_224.fb_in1k",
    768: "deit_base_patch16_224.fb_in1k",
}
# Their names -> ours, first match. `last_layer` is weight-normalised with a gain of 1, which is no parameter here.
RENAMED = (
    (r"^encoder\.", "backbone.vit."),
    (r"^decoder\.conv6\.", "decoder.conv1."),
    (r"^decoder\.conv7\.", "decoder.conv2."),
    (r"^decoder\.conv8\.", "decoder.classifier."),
    (r"^proj_head\.mlp\.", "projector.layers."),
    (r"^proj_head_t\.mlp\.", "teacher.layers."),
    (r"^proj_head\.last_layer\.weight_v$", "projector.directions.weight"),
    (r"^proj_head_t\.last_layer\.weight_v$", "teacher.directions.weight"),
)
CONVOLUTIONS = ("classifier.weight", "aux_classifier.weight")  # 1 x 1, here linear layers
GAINS = ("proj_head.last_layer.weight_g", "proj_head_t.last_layer.weight_g")
UNUSED = r"^encoder\.(head|head_dist|pre_logits)\."  # the classifier of ImageNet


def load_authors_checkpoint(path: str | Path, model: ToCo | None = None, **options) -> ToCo:
    """A `ToCo` with the weights of a checkpoint that the paper's code saved.

    Keys lose the `module.` of DistributedDataParallel and get this package's names. Only tensors are unpickled.

    Args:
        path: the file, of a DeiT-Ti, -S, -B or ViT-B with patches of 16.
        model: what to load into; None: a new one, with the shapes of the checkpoint, and the configuration VOC, or COCO
            where it has 81 classes.
        options: of the new `ToCo`. DeiT-B and ViT-B have the same shapes, and of ViT-B the new model's `backbone` is
            named DeiT-B unless it is given: `backbone="vit_base_patch16_224.orig_in21k_ft_in1k"`.

    Returns:
        The model.

    Raises:
        ValueError: keys are missing or unknown, shapes differ, or a gain is not 1; the message names them.
    """
    state = _tensors(torch.load(path, map_location="cpu", weights_only=True))
    if model is None:
        model = ToCo(**{**_described(state), **options})
    elif options:
        raise bad_value("options", "be those of a new model", [*options])
    renamed = _renamed(state)
    expected = model.state_dict()
    problems = [
        *(f"missing {name}" for name in expected if name not in renamed),
        *(f"unknown {name}" for name in renamed if name not in expected),
        *(
            f"{name} of shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
            for name, value in renamed.items()
            if name in expected and value.shape != expected[name].shape
        ),
    ]
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise bad_value("path", f"hold a checkpoint for {model.backbone.name}", f"{path}: {shown}")
    model.load_state_dict(renamed)
    return model


def _tensors(checkpoint: object) -> dict[str, Tensor]:
    """The state dict in a checkpoint, without `module.`."""
    if isinstance(checkpoint, dict):
        for key in ("state_dict", "model"):
            if isinstance(checkpoint.get(key), dict):
                checkpoint = checkpoint[key]
        if checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
            return {str(name).removeprefix("module."): value for name, value in checkpoint.items()}
    raise bad_value("path", "hold a state dict of tensors", type(checkpoint).__name__)


def _described(state: dict[str, Tensor]) -> dict[str, object]:
    """The options of a `ToCo` with the shapes of a checkpoint."""
    patches, last = state.get("encoder.patch_embed.proj.weight"), state.get("decoder.conv8.weight")
    if patches is None or last is None or patches.shape[0] not in BACKBONES:
        must = f"hold encoder.patch_embed.proj.weight of width {[*BACKBONES]}, and decoder.conv8.weight"
        raise bad_value("path", must, sorted(state)[:5] if patches is None or last is None else patches.shape[0])
    classes = last.shape[0]
    config: ToCoConfig = COCO if classes == COCO.num_classes else replace(VOC, num_classes=classes)
    return {"backbone": BACKBONES[patches.shape[0]], "config": config}


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        if re.match(UNUSED, name):
            continue
        if name in GAINS:
            if not torch.all(value == 1):
                raise bad_value("path", f"have {name} of 1, at which it is frozen", value.flatten()[:3].tolist())
            continue
        if name in CONVOLUTIONS:
            value = value.flatten(1)
        for theirs, ours in RENAMED:
            name = re.sub(theirs, ours, name)
        renamed[name] = value
    return renamed
