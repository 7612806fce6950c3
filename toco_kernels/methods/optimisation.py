"""What ToCo trains with: parameter groups for any optimiser, and its learning rate."""

from torch import nn

from ..common.errors import integer
from .config import Optimisation


def parameter_groups(model: nn.Module, optimisation: Optimisation) -> list[dict]:
    """The trained parameters of a `ToCo` in four groups, for `torch.optim.AdamW` or any other optimiser.

    As published, all decay alike, and all but the backbone learn `head_factor` times as fast. Frozen parameters and the
    teacher are in none of them. Empty groups, as of a frozen backbone, are left out.

    Args:
        model: a `ToCo`, also inside of DistributedDataParallel.
        optimisation: `config.optimisation`.

    Returns:
        Groups with `name` ("backbone", "norms", "classifiers", "decoder"), `params`, `lr` and `weight_decay`.

    Example:
        optimizer = torch.optim.AdamW(parameter_groups(model, VOC.optimisation), betas=VOC.optimisation.betas)
    """
    groups: dict[str, list] = {"backbone": [], "norms": [], "classifiers": [], "decoder": []}
    for name, parameter in model.named_parameters():
        name = name.removeprefix("module.")
        if not parameter.requires_grad:
            continue
        if name.startswith("backbone."):
            groups["norms" if "norm" in name else "backbone"].append(parameter)
        else:
            groups["decoder" if name.startswith("decoder.") else "classifiers"].append(parameter)
    factor = {"classifiers": optimisation.head_factor, "decoder": optimisation.head_factor}
    return [
        {
            "name": name,
            "params": parameters,
            "lr": optimisation.lr * factor.get(name, 1.0),
            "weight_decay": optimisation.weight_decay,
        }
        for name, parameters in groups.items()
        if parameters
    ]


def learning_rate_factor(step: int, optimisation: Optimisation, *, restart: bool = True) -> float:
    """The share of its learning rate that every group has at a step, for `torch.optim.lr_scheduler.LambdaLR`.

        step < warmup_steps:  from warmup_ratio to 1, linearly
        afterwards:           (1 - step / steps) ** power, and 0 from `steps` on

    Args:
        step: counted from 0.
        optimisation: `config.optimisation`.
        restart: `config.quirks.restart_after_warmup`. False: the polynomial begins at 1 where the warm-up ends.
    """
    step, warmup = integer(step, "step", least=0), optimisation.warmup_steps
    if step < warmup:
        return 1 - (1 - step / warmup) * (1 - optimisation.warmup_ratio)
    start = 0 if restart else warmup
    left = (optimisation.steps - step) / max(1, optimisation.steps - start)
    return max(0.0, left) ** optimisation.power
