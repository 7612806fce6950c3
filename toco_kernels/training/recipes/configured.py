"""What recipes share whose methods keep their settings in a frozen dataclass."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar

import torch
from torch import nn

from ...methods import learning_rate_factor, parameter_groups
from . import Recipe, optimisation_of

# Of a configuration: what presets keep beside `config`, under names that all methods share.
_BESIDE = ("num_classes", "background", "crop_size", "batch_size", "cam_scales", "optimisation")


def preset_of(config: Any, own: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The values of a preset.

    Args:
        config: `ToCoConfig` or another.
        own: what the method's presets have in addition, or in place of what is here.
        changes: this preset's.
    """
    settings = asdict(config)
    beside = {name: settings.pop(name) for name in _BESIDE if name in settings}
    optimisation = beside["optimisation"]
    return (
        {
            "backbone_options": {},
            "pretrained": True,
            "checkpointing": False,
            "steps": optimisation.pop("steps"),
            "lr": optimisation.pop("lr"),
            "optimisation": optimisation,
            "batch_size": beside["batch_size"],
            "background": beside.get("background"),  # None: it is a class of its own
            "augmentation": {"size": beside["crop_size"]},
            "cam_scales": beside.get("cam_scales", (1.0,)),
            "config": settings,
        }
        | own
        | changes
    )


class ConfiguredRecipe(Recipe):
    """A method whose presets are `preset_of` a configuration."""

    configuration: ClassVar[type]  # `ToCoConfig` or another

    def config(self, **own: Any) -> Any:
        """The method's configuration, with values of the method's own that its settings only spell."""
        settings = self.settings
        beside = {
            "num_classes": len(self.classes),
            "background": settings["background"],
            "crop_size": settings["augmentation"]["size"],
            "batch_size": settings["batch_size"],
            "cam_scales": settings["cam_scales"],
            "optimisation": optimisation_of(settings),
        }
        known = {field.name for field in fields(self.configuration)}
        values = settings["config"] | {name: beside[name] for name in _BESIDE if name in known} | own
        return self.configuration(**{name: _as_tuple(value) for name, value in values.items()})

    def options(self, *names: str) -> dict[str, Any]:
        """Settings by the names that the method's module has for them too."""
        return {name: self.settings[name] for name in (*names, "pretrained", "checkpointing", "backbone_options")}

    @property
    def mean(self) -> Sequence[float]:
        """Of the colours, in 0..255."""
        return self.config().mean

    @property
    def std(self) -> Sequence[float]:
        """Of the colours, in 0..255."""
        return self.config().std

    def lr_factor(self, step: int) -> float:
        """The published schedule."""
        return learning_rate_factor(step, self.config().optimisation)


def sgd_or_adamw(module: nn.Module, config: Any) -> torch.optim.Optimizer:
    """SGD without momentum, or AdamW where `config.optimiser` says so, over the parameter groups of the method."""
    groups = parameter_groups(module, config.optimisation)
    if config.optimiser == "adamw":
        return torch.optim.AdamW(groups, betas=config.optimisation.betas)
    return torch.optim.SGD(groups, lr=config.optimisation.lr)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # JSON knows no tuples
