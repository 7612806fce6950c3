"""What is particular to a method: one file each, with a class `Recipe`.

`--method toco` takes `recipes/toco.py`; `--method path/to/file.py` takes a file of yours, which is all that another
method needs. The commands do the rest: data, loop, processes, checkpoints, pictures, pseudo labels, evaluation.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...common.errors import bad_value
from ...methods.config import Optimisation
from ...testing import reference_only
from ..views import Augmentation, Views

METHODS = ("toco", "ppc", "tkp-pcl", "affinitynet")


class Recipe:
    """A method, as the commands see it. Override what differs.

    Args:
        settings: every value, as config.json has it: a preset, with what the user changed.
        classes: names, the background first.

    A preset has at least `steps`, `batch_size` (of all processes together), `lr`, `augmentation` (arguments of
    `views.Augmentation`), `background` (the score of the background that CAMs are evaluated with; None: they have a map
    of their own for it), and `cam_scales`.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    unused_parameters = False  # whether some get no gradient in some steps, which DistributedDataParallel must know
    saliency: bool = False  # whether `views` takes a saliency map (H, W) beside each photograph
    seeds: bool = False  # whether `views` takes a label (H, W) beside it, and `cams` class maps: a second stage
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # ImageNet's, in 0..255
    std: tuple[float, ...] = (58.395, 57.12, 57.375)

    def __init__(self, settings: dict[str, Any], classes: Sequence[str]):
        self.settings, self.classes = settings, tuple(classes)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> dict[str, Any]:
        """The values of a preset, with changes."""
        if name not in cls.presets:
            raise bad_value("preset", f"be one of {', '.join(cls.presets)}", repr(name))
        unknown = changes.keys() - cls.presets[name].keys()
        if unknown:
            raise bad_value("settings", f"be among {', '.join(sorted(cls.presets[name]))}", min(unknown))
        return cls.presets[name] | changes

    def build(self, process_group: dist.ProcessGroup | None = None) -> nn.Module:
        """The network, on the CPU. Its `forward(images, image_labels, *, views, boxes, step)` returns an output with
        `loss` and `losses`; it has `cams` and `predict` unless these are overridden here."""
        raise NotImplementedError

    def views(self) -> Callable[[np.ndarray], dict]:
        """From a photograph (H, W, 3) to the tensors of one sample: `images`, and what `step` takes from the batch."""
        return Views(Augmentation(**self.settings["augmentation"]), self.mean, self.std)

    def step(self, module: nn.Module, batch: dict, step: int) -> Any:
        """One forward pass of a training step; `module` may be wrapped by DistributedDataParallel."""
        return module(batch["images"], batch["image_labels"], views=batch["views"], boxes=batch["boxes"], step=step)

    def published_step(self, module: nn.Module, batch: dict, step: int) -> Any:
        """`step` as published, for `certify`: here with the reference of every operator."""
        with reference_only():
            return self.step(module, batch, step)

    def certified_from(self) -> int:
        """The first step that `certify` takes: one at which everything is trained."""
        return 0

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimiser, with the learning rates that `lr_factor` multiplies."""
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.settings["lr"])

    def lr_factor(self, step: int) -> float:
        """Of the learning rates at a step, counted from 0: a short warm-up, then down along half a cosine."""
        steps = self.settings["steps"]
        warmup = max(1, steps // 20)
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + float(np.cos(np.pi * step / steps)))

    def cams(self, module: nn.Module, images: Tensor, image_labels: Tensor) -> dict[str, Tensor]:
        """CAMs (B, C, H, W) in [0, 1] by name, of normalised images of any size; `cam` is what labels are made of.
        With `background=None`, (B, C + 1, H, W), the background first."""
        return {"cam": module.cams(images, image_labels)}

    def predict(
        self,
        module: nn.Module,
        images: Tensor,
        size: tuple[int, int],
        scales: Sequence[float] = (1.0,),
        flip: str | None = None,
        merge: str = "max",
    ) -> Tensor | None:
        """Class logits (B, classes, *size) of normalised images; None where the method has no segmentation.

        Args:
            module: the network.
            images: (B, 3, H, W).
            size: of the result.
            scales: of the passes.
            flip: None, or how images and mirror images are joined at each scale: "sum" or "max".
            merge: how scales are joined, "max" or "sum".
        """
        return None


def optimisation_of(settings: dict[str, Any]) -> Optimisation:
    """The schedule and the groups of a preset that keeps `steps` and `lr` beside its other values."""
    others = settings["optimisation"]
    return Optimisation(settings["steps"], settings["lr"], **{**others, "betas": tuple(others["betas"])})


def find(method: str) -> type[Recipe]:
    """The recipe of a method, or that in a file of the user's."""
    file = Path(method) if method.endswith(".py") else Path(__file__).with_name(f"{method.replace('-', '_')}.py")
    if not method.endswith(".py") and method not in METHODS:
        raise bad_value("method", f"be one of {', '.join(METHODS)}, or a Python file", repr(method))
    if not file.is_file():
        raise bad_value("method", "be a file that exists", repr(method))
    if method.endswith(".py"):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(f".{file.stem}", __name__)
    return module.Recipe
