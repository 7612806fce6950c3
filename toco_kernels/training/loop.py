"""The training loop, the same for every method, on one process or many."""

import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from . import batches, checkpoints, recipes, records
from .data import SPLITS, has_masks, open_data, spread
from .files import DataError, write_json
from .predictor import Predictor, autocast
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
        step: the first step to take.
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
        samples = batches.Samples(self.data, self.recipe.views(), job.seed)
        order = batches.Order(
            len(samples),
            self.settings["batch_size"],
            start,
            stop,
            seed=job.seed,
            rank=processes.rank,
            world=processes.world,
        )
        return batches.loader(samples, order, workers=job.workers, pin=processes.device.type == "cuda")

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


def train(job: Job, *, resume: bool = False, show_progress: bool = True) -> dict:
    """Train from the beginning or from the newest checkpoint; returns what metrics.json holds."""
    processes = Processes.join(job.device)
    try:
        return _train(job, processes, resume, show_progress and processes.first)
    finally:
        processes.leave()


def _train(job: Job, processes: Processes, resume: bool, show_progress: bool) -> dict:
    trainer = Trainer(job, processes)
    config = job.as_dict() | {
        "classes": trainer.data.classes,
        "label_source": trainer.data.label_source,
        "weights_sha256": trainer.weights_hash,
        "world": processes.world,
        "device": str(processes.device),
        "versions": records.versions(),
        "commit": records.commit(),
    }
    state = _begin(job.run, config, resume, processes)
    start, seconds, skipped = 0, 0.0, set()
    if state is not None:
        trainer.restore(state)
        start, seconds, skipped = state["step"], state["seconds"], set(state["skipped"])
    stop = job.settings["steps"]
    record = records.Records(job.run, start) if processes.first else None
    began = time.monotonic()

    def elapsed() -> float:
        return seconds + time.monotonic() - began

    with tqdm(total=stop, initial=start, unit="step", disable=not show_progress) as bar:
        if processes.first:
            for warning in trainer.data.warnings:
                bar.write(f"warning: {warning}", file=sys.stderr)
        watch = _Watch(trainer, record) if processes.first else None
        for step, batch in zip(range(start, stop), trainer.batches(start, stop), strict=True):
            for problem in batch.pop("problems"):
                if problem not in skipped:
                    bar.write(f"skipped: {problem}", file=sys.stderr)
                    skipped.add(problem)
            losses = trainer.take(step, batch)
            if _due(step, job.log_every) or step == stop - 1:
                values = trainer.numbers(losses)
                wrong = [name for name, value in values.items() if value != value or abs(value) == float("inf")]
                if wrong:
                    raise TrainingError(f"{', '.join(wrong)} at step {step} is no number: {values}")
                if record:
                    record.losses(step, values)
                bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
            bar.update()
            if watch:
                watch.look(step)
            if _due(step, job.checkpoint_every) or step == stop - 1:
                everything = sorted(set().union(*processes.gather(skipped)))
                if processes.first:
                    kept = {"seconds": elapsed(), "skipped": everything}
                    checkpoints.save(job.run / "checkpoints", step + 1, trainer.state() | kept)
    skipped = set().union(*processes.gather(skipped))
    metrics: dict = {}
    if processes.first:
        metrics = {"steps": stop, "seconds": elapsed(), "skipped": sorted(skipped)}
        metrics |= _measure(trainer, show_progress)
        record.metrics(metrics)
        record.close()
        if skipped:
            print(f"{len(skipped)} photographs could not be used", file=sys.stderr)
    processes.wait()
    return metrics


def _begin(run: Path, config: dict, resume: bool, processes: Processes) -> dict | None:
    """Write config.json, or compare with the one there; returns the checkpoint to go on from."""
    file = run / "config.json"
    state = checkpoints.newest(run / "checkpoints") if resume else None
    if file.exists() and not resume:
        raise DataError(run, "holds a run already: --resume it, or take another folder")
    if file.exists():
        records.check_same(file, config)
    processes.wait()  # until all have looked
    if processes.first and not file.exists():
        write_json(file, config)
    return state


class _Watch:
    """Looks at some photographs of the validation split while it trains."""

    def __init__(self, trainer: Trainer, record: records.Records):
        self.trainer, self.record, self.job = trainer, record, trainer.job
        self.data = None
        if self.job.picture_every or self.job.evaluate_every:
            self.data = _open(self.job, SPLITS[self.job.data][1])

    def look(self, step: int) -> None:
        """Draw pictures and evaluate where it is time to."""
        if self.data is None or not (_due(step, self.job.picture_every) or _due(step, self.job.evaluate_every)):
            return
        predictor = _predictor(self.trainer)
        settings = self.job.refined()
        if _due(step, self.job.picture_every):
            shown = spread(len(self.data), 4)
            self.record.picture(step, predictor.picture(self.data, settings, shown))
        if _due(step, self.job.evaluate_every):
            some = spread(len(self.data), self.job.evaluate_images[0])
            results = predictor.evaluate(self.data, settings, some, show_progress=False)
            self.record.scores(step, {f"{name}_miou": result.miou() for name, result in results.items()})


def _measure(trainer: Trainer, show_progress: bool) -> dict:
    """The numbers of metrics.json, on the split that is measured."""
    job = trainer.job
    split = SPLITS[job.data][2]
    data = _open(job, split)
    if data is None:
        return {"split": split, "cam_miou": None, "pseudo_label_miou": None, "seg_miou": None}
    indices = spread(len(data), job.evaluate_images[1])
    results = _predictor(trainer).evaluate(data, job.refined(), indices, show_progress=show_progress)
    reports = {name: result.report(data.classes) for name, result in results.items()}
    numbers = {f"{name}_miou": report["miou"] for name, report in reports.items()}
    return {"split": split, "images": len(indices), "seg_miou": None, **numbers, "details": reports}


def _open(job: Job, split: str):
    """A split with masks, or None and a warning."""
    data = open_data(job.data, split, job.root, labels=job.labels)
    if not has_masks(data):
        warnings.warn(f"{job.root}: there are no masks to measure with", stacklevel=2)
        return None
    return data


def _predictor(trainer: Trainer) -> Predictor:
    return Predictor(trainer.recipe, trainer.module, trainer.processes.device, precision=trainer.job.precision)


def _due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps is done after this one."""
    return every > 0 and (step + 1) % every == 0


def _to(batch: Any, device: torch.device) -> Any:
    """The batch on a device, without waiting."""
    if isinstance(batch, dict):
        return {name: _to(value, device) for name, value in batch.items()}
    return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch
