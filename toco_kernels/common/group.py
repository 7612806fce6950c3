"""Process groups: modules that have one and can be copied and pickled all the same; the batches of all processes."""

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn


class WithProcessGroup(nn.Module):
    """Copies use the same `process_group`; pickled modules have None, since the group is of running processes."""

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "process_group": None}

    def __deepcopy__(self, memo: dict):
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        twin.process_group = self.process_group
        return twin


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor):
        size, rank = ctx.group.size(), dist.get_group_rank(ctx.group, dist.get_rank())
        return grad.chunk(size)[rank] * size, None


def gathered(
    x: Tensor,  # (B, …)
    group: "dist.ProcessGroup",
) -> Tensor:  # (processes * B, …)
    """The batches of all processes, in the order of their ranks; shapes must be the same everywhere.

    The gradient is that of this process's part, times the number of processes: where all compute one loss of the joined
    batch, DistributedDataParallel's mean over processes is its gradient.
    """
    return _Gathered.apply(x, group)
