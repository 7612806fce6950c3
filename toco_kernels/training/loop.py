"""The training loop, the same for every method, on one process or many."""

import sys
import time
import warnings
from pathlib import Path

from tqdm import tqdm

from . import checkpoints, records, seeds
from .data import SPLITS, has_masks, open_data, spread
from .files import DataError, write_json
from .folder import split_file
from .predictor import Predictor
from .processes import Processes
from .pseudo_labels import Data
from .trainer import Job, Trainer, TrainingError


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
        "seeds_made_with": seeds.made_with(job.seeds) if job.seeds else None,
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
    # Now, not after a night.
    measured = _open(job, SPLITS[job.data][2], job.evaluate_images[1]) if processes.first else None
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
            if _due(step, job.log_every) or _due(step, job.checkpoint_every) or step == stop - 1:
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
        metrics |= _measure(trainer, measured, show_progress)
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
            some = [4] * (self.job.picture_every > 0) + [self.job.evaluate_images[0]] * (self.job.evaluate_every > 0)
            self.data = _open(self.job, SPLITS[self.job.data][1], *some)

    def look(self, step: int) -> None:
        """Draw pictures and evaluate where it is time to; whoever wants pictures gets one at the end, too."""
        last = self.job.picture_every > 0 and step == self.job.settings["steps"] - 1
        draws, evaluates = _due(step, self.job.picture_every) or last, _due(step, self.job.evaluate_every)
        if self.data is None or not (draws or evaluates):
            return
        predictor = _predictor(self.trainer)
        settings = self.job.refined()
        if draws:
            shown = spread(len(self.data), 4)
            self.record.picture(step, predictor.picture(self.data, settings, shown))
        if evaluates and has_masks(self.data):
            some = spread(len(self.data), self.job.evaluate_images[0])
            results = predictor.evaluate(self.data, settings, some, show_progress=False)
            self.record.scores(step, {f"{name}_miou": result.miou() for name, result in results.items()})


def _measure(trainer: Trainer, data: Data | None, show_progress: bool) -> dict:
    """The numbers of metrics.json, on the split that is measured."""
    job = trainer.job
    split = SPLITS[job.data][2]
    if data is None or not has_masks(data):
        return {"split": split, "cam_miou": None, "pseudo_label_miou": None, "seg_miou": None}
    indices = spread(len(data), job.evaluate_images[1])
    results = _predictor(trainer).evaluate(data, job.refined(), indices, show_progress=show_progress)
    reports = {name: result.report(data.classes) for name, result in results.items()}
    numbers = {f"{name}_miou": report["miou"] for name, report in reports.items()}
    return {"split": split, "images": len(indices), "seg_miou": None, **numbers, "details": reports}


def _open(job: Job, split: str, *counts: int | None) -> Data | None:
    """A split, to look at so many photographs, or all; None and a warning where there is no list or no seed of it."""
    if job.data == "folder" and not split_file(job.root, split).exists():
        warnings.warn(f"{job.root}: there is no list {split}.txt: nothing is measured or drawn", stacklevel=2)
        return None
    data = open_data(job.data, split, job.root, labels=job.labels)
    if not has_masks(data):
        warnings.warn(f"{job.root}: there are no masks to measure with", stacklevel=2)
    if job.seeds is not None:
        looked_at = sorted({index for count in counts for index in spread(len(data), count)})
        files = [seeds.maps_file(job.seeds, data.names[index]) for index in looked_at]
        absent = seeds.absent(files)
        if len(absent) == len(files):
            warnings.warn(f"{job.seeds}: there are no class maps of {split}: none is measured or drawn", stacklevel=2)
            return None
        if absent:
            raise DataError(absent[0], f"is missing, a seed of {split}; so are {len(absent) - 1} of {len(files)}")
    return data


def _predictor(trainer: Trainer) -> Predictor:
    job, device = trainer.job, trainer.processes.device
    return Predictor(trainer.recipe, trainer.module, device, precision=job.precision, seeds_of=job.seeds)


def _due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps is done after this one."""
    return every > 0 and (step + 1) % every == 0
