"""What ToCo trains with: parameter groups for any optimiser, and its learning rate."""

from torch import nn

from ..common.errors import bad_value, integer
from .affinity_net import AffinityNet
from .config import Optimisation
from .ppc import PPC
from .toco import ToCo

METHODS = (ToCo, PPC, AffinityNet)


def parameter_groups(model: nn.Module, optimisation: Optimisation) -> list[dict]:
    """The trained parameters of a `ToCo`, a `PPC` or an `AffinityNet` in groups, for `torch.optim.AdamW` or any other.

    As published, all decay alike, and all but the backbone learn `head_factor` times as fast. Frozen parameters and the
    teacher are in none of them. Empty groups, as of a frozen backbone, are left out.

    Args:
        model: a method of this package, also inside of DistributedDataParallel, `torch.compile` or a module of your
            own. Trained parameters that are not the method's must have groups of their own: pass the method alone then.
        optimisation: `config.optimisation`.

    Returns:
        Groups with `name` ("backbone", "norms", "classifiers", which are all heads, and "decoder"), `params`, `lr`,
        `initial_lr`, which is the same and what a schedule multiplies, and `weight_decay`.

    Raises:
        ValueError: there is no method in the model, or it has trained parameters beside it.

    Example:
        optimizer = torch.optim.AdamW(parameter_groups(model, VOC.optimisation), betas=VOC.optimisation.betas)
    """
    method = next((module for module in model.modules() if isinstance(module, METHODS)), None)
    if method is None:
        must = f"be or hold one of {', '.join(kind.__name__ for kind in METHODS)}"
        raise bad_value("model", must, type(model).__name__)
    own, name = {id(parameter) for parameter in method.parameters()}, type(method).__name__
    if beside := [each for each, p in model.named_parameters() if p.requires_grad and id(p) not in own]:
        raise bad_value("model", f"train a {name} and nothing beside it: pass the {name} alone", ", ".join(beside[:5]))
    groups: dict[str, list] = {"backbone": [], "norms": [], "classifiers": [], "decoder": []}
    for name, parameter in method.named_parameters():
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
            "initial_lr": optimisation.lr * factor.get(name, 1.0),
            "weight_decay": optimisation.weight_decay,
        }
        for name, parameters in groups.items()
        if parameters
    ]


def learning_rate_factor(step: int, optimisation: Optimisation) -> float:
    """The share of its learning rate that every group has at a step.

        step < warmup_steps:  from warmup_ratio to 1, linearly
        afterwards:           (1 - step / steps) ** power, and 0 from `steps` on

    Without `restart_after_warmup`, the polynomial begins at 1 where the warm-up ends.

    Args:
        step: counted from 0.
        optimisation: `config.optimisation`.

    Example:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(step, VOC.optimisation)
    """
    step, warmup = integer(step, "step", least=0), optimisation.warmup_steps
    if step < warmup:
        return 1 - (1 - step / warmup) * (1 - optimisation.warmup_ratio)
    start = 0 if optimisation.restart_after_warmup else warmup
    left = (optimisation.steps - step) / max(1, optimisation.steps - start)
    return max(0.0, left) ** optimisation.power
