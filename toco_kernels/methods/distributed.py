"""FSDP2 for methods with a moving average."""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from .toco import ToCo


def shard_(model: ToCo, mesh: DeviceMesh | None = None, **options) -> ToCo:
    """Shard a `ToCo` with FSDP2: each block, both projection heads, and the rest.

    The heads are units of their own, so that the teacher moves while its parameters are shards: what is written to
    gathered parameters is lost. `cams` and `predict` gather parameters as `forward` does.

    Args:
        model: before the optimiser is made; changed in place.
        mesh, options: of `torch.distributed.fsdp.fully_shard`, e.g. `mp_policy`.

    Returns:
        The model.
    """
    units: list[nn.Module] = [*model.backbone.vit.blocks, model.projector, model.teacher, model]
    for unit in units:
        fully_shard(unit, mesh=mesh, **options)
    for method in ("cams", "predict"):
        register_fsdp_forward_method(model, method)
    return model
