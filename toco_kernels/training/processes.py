"""One process or many: `torchrun --nproc-per-node 2 -m toco_kernels train …` needs nothing else."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls, device: str | None = None) -> "Processes":
        """Join the others that torchrun started, over nccl on GPUs and gloo elsewhere; alone without torchrun."""
        rank, world, local = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        chosen = torch.device(kind)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", local if world > 1 or chosen.index is None else chosen.index)
            torch.cuda.set_device(chosen)
        if world > 1 and not dist.is_initialized():
            # The first process evaluates alone, which may take hours, and the others wait.
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(days=2))
        return cls(rank, world, chosen)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """All processes, None for one alone."""
        return dist.group.WORLD if self.world > 1 else None

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, on all of them."""
        if self.world == 1:
            return [value]
        values: list = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over processes."""
        if self.world > 1:
            dist.all_reduce(values)
            values = values / self.world
        return values

    def leave(self) -> None:
        """End the group that `join` began."""
        if self.world > 1:
            dist.destroy_process_group()


_VARIABLES = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
