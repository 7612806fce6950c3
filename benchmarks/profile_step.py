"""Where the time of a whole training step goes: published and ours, from loading a batch to the optimiser.

    python benchmarks/profile_step.py [--backbone NAME] [--size N] [--batch N] [--steps N] [--out FILE]

Eight generated photographs in VOC's layout, random weights, the last stage of ToCo's VOC configuration, where all
losses count; the energy is the lattice's in both. Writes a text: wall time of each step, how often the host waited for
the GPU, how many operators were called and kernels launched, and which took longest; parts of a step are among them, as
`toco::`, `published::` and `step::`. On a CPU the defaults are small, for a look within minutes: what takes longest
there says nothing about a GPU.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from bench_step import plain_energy
from harness import DEVICE
from machine import describe
from PIL import Image
from rows import RESULTS
from torch.profiler import ProfilerActivity, profile, record_function

from toco_kernels.common.measure import Syncs, synchronize
from toco_kernels.methods import ToCoOutput
from toco_kernels.methods.published import published_step as published
from toco_kernels.training.processes import Processes
from toco_kernels.training.recipes.toco import Recipe
from toco_kernels.training.shapes import KINDS, Shapes
from toco_kernels.training.trainer import Job, Trainer

ROWS = 25  # operators and kernels that are listed


def published_step(recipe: Recipe, module: torch.nn.Module, batch: dict, step: int) -> ToCoOutput:
    """With the lattice in plain C++, as bench_step.py has it, where the recipe's is a reference in Python."""
    arguments = {name: batch[name] for name in ("images", "image_labels", "views", "boxes")}
    return published(module, **arguments, step=step, energy=plain_energy)


STEPS = {"published": published_step, "toco_kernels": Recipe.step}


def write_folder(root: Path, count: int = 8, size: tuple[int, int] = (375, 500)) -> None:
    """Generated images, blown up to the size of VOC's photographs."""
    shapes = Shapes("train")
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = [str(index) for index in range(count)]
    for index, name in enumerate(names):
        image = Image.fromarray(shapes.image(index)).resize(size[::-1], Image.Resampling.BICUBIC)
        image.save(root / "JPEGImages" / f"{name}.jpg")
    shown = {name: [c for c, on in zip(KINDS, shapes.labels(i), strict=True) if on] for i, name in enumerate(names)}
    (root / "labels.json").write_text(json.dumps(shown))
    (root / "classes.txt").write_text("\n".join(shapes.classes))
    for split in ("train", "val"):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names))


def trainer_of(root: Path, backbone: str, size: int, batch: int) -> Trainer:
    """ToCo on VOC's settings, with classifiers larger than at the start, so that CAMs have objects and background."""
    settings = Recipe.preset("voc", backbone=backbone, pretrained=False, batch_size=batch, energy_kernel="lattice")
    settings["augmentation"] = {**settings["augmentation"], "size": size}
    trainer = Trainer(Job(root / "run", "toco", settings, data="folder", root=root), Processes.join(None))
    with torch.no_grad():
        for classifier in (trainer.module.classifier, trainer.module.aux_classifier):
            classifier.weight.mul_(20)
    return trainer


def steps_of(trainer: Trainer, which: str, count: int) -> Iterator[float]:
    """Seconds of each of `count` steps, from loading the batch to the optimiser."""
    forward = partial(STEPS[which], trainer.recipe)
    first = trainer.recipe.certified_from()
    batches = iter(trainer.batches(first, first + count))
    for step in range(first, first + count):
        began = time.perf_counter()
        with record_function("step::load"):
            batch = next(batches)
        batch.pop("problems")
        trainer.take(step, batch, forward)
        synchronize()
        yield time.perf_counter() - began


def waits(trainer: Trainer, which: str) -> int:
    """How often a step waits for the GPU: warnings of torch's own; on a CPU, where forward and backward would."""
    if DEVICE == "cpu":
        first = trainer.recipe.certified_from()
        batch = next(iter(trainer.batches(first, first + 1)))
        with Syncs() as syncs:  # not of loading, nor of AdamW, whose counters are on the host
            STEPS[which](trainer.recipe, trainer.module, batch, first).loss.backward()
        return syncs.count
    list(steps_of(trainer, which, 1))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            list(steps_of(trainer, which, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def profiled(trainer: Trainer, which: str, steps: int) -> str:
    """The text about one way to take a step."""
    waited = waits(trainer, which)  # and load what a process loads once
    milliseconds = [1e3 * seconds for seconds in steps_of(trainer, which, steps)]
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]
    with profile(activities=activities) as profiler:
        list(steps_of(trainer, which, 1))
    averages = profiler.key_averages()
    kind = "device" if DEVICE == "cuda" else "cpu"
    table = averages.table(sort_by=f"self_{kind}_time_total", row_limit=ROWS, max_name_column_width=60)
    spread = ", ".join(f"{ms:.0f}" for ms in sorted(milliseconds))
    calls = sum(event.count for event in averages if event.key.startswith("aten::"))
    launches = sum(event.count for event in averages if "LaunchKernel" in event.key)
    where = "a step" if DEVICE == "cuda" else "forward and backward, were there a GPU"
    return (
        f"== {which}\n\nms of each step: {spread}\ntimes that the host waits in {where}: {waited}\n"
        f"calls of torch's operators in a step: {calls}; kernels launched: {launches or 'none, on a CPU'}\n\n{table}\n"
    )


def main() -> None:
    """Profile both and write the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = DEVICE == "cuda"
    parser.add_argument("--backbone", default=f"deit_{'base' if on_gpu else 'tiny'}_patch16_224")
    parser.add_argument("--size", type=int, default=448 if on_gpu else 224)
    parser.add_argument("--batch", type=int, default=2 if on_gpu else 1)
    parser.add_argument("--steps", type=int, default=10 if on_gpu else 2)
    machine = describe()
    parser.add_argument("--out", type=Path, default=RESULTS / f"{machine['name']}-step.txt")
    args = parser.parse_args()
    where = machine["gpu"] or f"on a CPU, no GPU: {machine['cpu']}, {torch.get_num_threads()} threads"
    text = [f"{args.backbone}, {args.batch} x {args.size} pixels, {where}, torch {machine['torch']}, lattice\n"]
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder))
        for which in STEPS:
            trainer = trainer_of(Path(folder), args.backbone, args.size, args.batch)
            text.append(profiled(trainer, which, args.steps))
            print(text[-1], flush=True)
    args.out.write_text("\n".join(text))


if __name__ == "__main__":
    main()
