"""What is trained, and one process's part of it: network, optimiser, batches, steps."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from . import batches, checkpoints, recipes
from .data import SPLITS, check_saliency, open_data
from .predictor import autocast
from .processes import Processes
from .refine import Settings
from .views import seed_of

PRECISIONS = ("float32", "bfloat16", "float16")


class TrainingError(ArithmeticError):
    """Training cannot go on."""


@dataclass(frozen=True)
class Job:
    """One training, as config.json has it.

    Args:
        run: the folder to write to.
        method: of `recipes`, or a Python file.
        settings: of the method, every value: a preset with changes.
        data, root, sbd, labels: see `data.open_data`.
        seeds: the folder of what a first stage found, see `seeds`; None: there was none.
        seed: of weights, order, views and everything else that is random.
        precision: one of PRECISIONS; half precision is where matrices are multiplied.
        refinement: of the pseudo labels that are measured: one of `refine.REFINEMENTS`.
        workers: processes that load data, for each training process.
        log_every, picture_every, evaluate_every, checkpoint_every: in steps; 0: never. Checkpoints are always written
            at the end.
        evaluate_images: on how many photographs it is looked meanwhile, and measured at the end; None: all.
        device: "cpu", "cuda" or None: a GPU where there is one.
    """

    run: Path
    method: str
    settings: dict[str, Any]
    data: str = "shapes"
    root: Path | None = None
    sbd: Path | None = None
    labels: str = "auto"
    seeds: Path | None = None
    seed: int = 0
    precision: str = "float32"
    refinement: str = "par"
    workers: int = 0
    log_every: int = 10
    picture_every: int = 0
    evaluate_every: int = 0
    checkpoint_every: int = 0
    evaluate_images: tuple[int, int | None] = (32, None)
    device: str | None = field(default=None, compare=False)

    def as_dict(self) -> dict:
        """Every value, for config.json."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("run", "device")}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def refined(self) -> Settings:
        """How pseudo labels are made where they are measured."""
        background = self.settings["background"]
        return Settings(self.refinement, background, background)


class Trainer:
    """Everything that one process needs to take steps.

    Args:
        job: what to do.
        processes: who takes part.
    """

    def __init__(self, job: Job, processes: Processes):
        if job.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {job.precision!r}")
        if processes.device.type == "cuda":  # so that a resumed run goes on bit for bit
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.deterministic = True
            torch.use_deterministic_algorithms(True, warn_only=True)
        self.job, self.processes = job, processes
        where = {"root": job.root, "sbd": job.sbd, "labels": job.labels, "lenient": True}
        self.data = open_data(job.data, SPLITS[job.data][0], **where)
        self.recipe = recipes.find(job.method)(job.settings, self.data.classes)
        if self.recipe.saliency:
            check_saliency(self.data)  # now, not after a night
        if self.recipe.seeds != (job.seeds is not None):
            must = "be the folder that pseudo-label --keep-maps wrote" if self.recipe.seeds else "not be given"
            raise ValueError(f"seeds must {must}, for method {job.method}, got {job.seeds}")
        self.samples = batches.Samples(
            self.data, self.recipe.views(), job.seed, saliency=self.recipe.saliency, seeds_of=job.seeds
        )
        if len(self.samples) < len(self.data):
            without = len(self.data) - len(self.samples)
            self.data.warnings.append(f"{job.seeds}: {without} of {len(self.data)} photographs have no label; left out")
        torch.manual_seed(seed_of(job.seed))
        self.module = self.recipe.build(processes.group)
        self.weights_hash = checkpoints.hash_of(self.module)
        self.module.to(processes.device)
        self.optimizer = self.recipe.optimizer(self.module)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=job.precision == "float16")
        self.autocast = autocast(processes.device, job.precision)
        self.wrapped: nn.Module = self.module
        if processes.world > 1:
            on = [processes.device.index] if processes.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(
                self.module, device_ids=on, find_unused_parameters=self.recipe.unused_parameters
            )

    def batches(self, start: int, stop: int) -> torch.utils.data.DataLoader:
        """The batches of these steps."""
        job, processes = self.job, self.processes
        order = batches.Order(
            len(self.samples),
            self.settings["batch_size"],
            start,
            stop,
            seed=job.seed,
            rank=processes.rank,
            world=processes.world,
        )
        return batches.loader(self.samples, order, workers=job.workers, pin=processes.device.type == "cuda")

    @property
    def settings(self) -> dict[str, Any]:
        """Of the method."""
        return self.job.settings

    def take(self, step: int, batch: dict, forward: Callable | None = None) -> dict[str, torch.Tensor]:
        """One step, by another function than the recipe's if need be. Returns the losses of this process, without
        waiting for a GPU."""
        self.module.train()
        batch = _to(batch, self.processes.device)
        factor = self.recipe.lr_factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        torch.manual_seed(seed_of(self.job.seed, step, self.processes.rank))  # for dropout and the like
        with self.autocast:
            output = (forward or self.recipe.step)(self.wrapped, batch, step)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(output.loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {"loss": output.loss.detach(), **{name: loss.detach() for name, loss in output.losses.items()}}

    def numbers(self, losses: dict[str, torch.Tensor]) -> dict[str, float]:
        """The losses of all processes as numbers."""
        values = self.processes.mean(torch.stack([loss.float() for loss in losses.values()]))
        return dict(zip(losses, values.tolist(), strict=True))

    def state(self) -> dict:
        """What a checkpoint holds. Random numbers need no state: they depend on seed and step."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict) -> None:
        """Go on from a checkpoint."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def _to(batch: Any, device: torch.device) -> Any:
    """The batch on a device, without waiting."""
    if isinstance(batch, dict):
        return {name: _to(value, device) for name, value in batch.items()}
    return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch
