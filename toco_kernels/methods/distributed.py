"""FSDP2 for methods, with a moving average or without."""

from typing import TYPE_CHECKING

from torch import nn

from .affinity_net import AffinityNet
from .ppc import PPC
from .toco import ToCo

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard_(model: ToCo | PPC | AffinityNet, mesh: "DeviceMesh | None" = None, **options) -> ToCo | PPC | AffinityNet:
    """Shard a method with FSDP2: of a `ToCo` each block, both heads and the rest; of others each part of the backbone.

    ToCo's heads are units of their own, so that the teacher moves while its parameters are shards: what is written to
    gathered parameters is lost. `cams`, `predict` and `walk` gather parameters as `forward` does.

    Args:
        model: before the optimiser is made; changed in place.
        mesh, options: of `torch.distributed.fsdp.fully_shard`, e.g. `mp_policy`.

    Returns:
        The model.
    """
    # Imported here, since it takes a second and not every torch has it.
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    units: list[nn.Module]
    if isinstance(model, ToCo):
        units = [*model.backbone.vit.blocks, model.projector, model.teacher]
    else:
        units = [part for part in model.backbone.network.children() if any(True for _ in part.parameters())]
    for unit in (*units, model):
        fully_shard(unit, mesh=mesh, **options)
    for method in ("cams", "predict", "walk"):
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)
    return model
