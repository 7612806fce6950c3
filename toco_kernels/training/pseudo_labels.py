"""Pseudo labels for a whole data set: one process runs the network, others refine and write.

Every file is written whole or not at all, so an interrupted run goes on where it stopped. What the labels were made
with is beside them in settings.json; a run with other settings refuses the folder rather than mix two kinds of labels.
"""

import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import seeds
from .files import DataError, read_json, write_json, write_mask
from .folder import Folder
from .refine import Settings, pseudo_label
from .shapes import Shapes

Data = Folder | Shapes


@dataclass
class Report:
    """How many labels a run wrote, how many were there already, and what was left out."""

    written: int = 0
    kept: int = 0
    skipped: list[str] = field(default_factory=list)


def make(
    data: Data,
    maps_of: Callable[..., np.ndarray],  # (H, W, 3), (C,), with seeds theirs -> (C or C + 1, H, W)
    out: Path,
    settings: Settings,
    *,
    made_with: dict | None = None,
    workers: int = 0,
    indices: Sequence[int] | None = None,
    show_progress: bool = True,
    keep_maps: bool = False,
    seeds_of: Path | None = None,
) -> Report:
    """Write NAME.png for every photograph that has none yet.

    Args:
        data: photographs and image labels.
        maps_of: the network: from a photograph and its image labels to its CAMs, or its segmentation's probabilities.
        out: the folder to write to.
        settings: of the refinement.
        made_with: what else the labels depend on, for settings.json.
        workers: processes that refine and write; 0: this one does it.
        indices: which photographs; None: all.
        show_progress: a bar, on standard error.
        keep_maps: whether NAME.npz with the CAMs is written too, before NAME.png; see `seeds`.
        seeds_of: None, or a folder of such maps, which `maps_of` takes beside photograph and labels.

    Raises:
        DataError: the folder holds labels made with other settings, or cannot be written to.
    """
    claim(out, settings.as_dict() | (made_with or {}))
    report = Report()
    indices = range(len(data)) if indices is None else indices
    missing = [index for index in indices if not (out / f"{data.names[index]}.png").exists()]
    report.kept = len(indices) - len(missing)
    # Not forked: threads of the network's libraries do not survive that. Workers import NumPy and no torch.
    pool = ProcessPoolExecutor(workers, get_context("spawn")) if workers else nullcontext()
    with pool, tqdm(total=len(indices), initial=report.kept, unit="image", disable=not show_progress) as bar:
        unfinished: deque[Future] = deque()
        try:
            for index in missing:
                try:
                    image = data.image(index)
                    labels = data.labels(index) if settings.source == "cam" else np.zeros(0)
                    found = () if seeds_of is None else (seeds.of(seeds_of, data, index, image),)
                except DataError as error:
                    report.skipped.append(str(error))
                    bar.write(f"skipped: {error}", file=sys.stderr)
                    continue
                maps = maps_of(image, labels, *found)
                if settings.source == "cam":  # absent classes need not travel
                    labels = np.flatnonzero(labels)
                    maps = maps[settings.maps_of(labels)]
                job = (out / f"{data.names[index]}.png", image, maps, labels, settings, keep_maps)
                if workers:
                    while len(unfinished) >= 2 * workers:
                        unfinished.popleft().result()
                    unfinished.append(_submit(pool, job, bar))
                else:
                    refine_and_write(*job)
                    bar.update()
                report.written += 1
            while unfinished:
                unfinished.popleft().result()
        except BaseException:
            for future in unfinished:
                future.cancel()
            raise
    return report


def _submit(pool: Executor, job: tuple, bar: tqdm) -> Future:
    future = pool.submit(refine_and_write, *job)
    future.add_done_callback(lambda _: bar.update())
    return future


def refine_and_write(
    file: Path,
    image: np.ndarray,  # (H, W, 3)
    maps: np.ndarray,  # the CAMs of the classes shown, (n or n + 1, H, W); or a segmentation's (classes, H, W)
    shown: np.ndarray,  # (n,) indices of those
    settings: Settings,
    keep_maps: bool = False,
) -> None:
    """What a worker does for one photograph."""
    if keep_maps:  # first: the label says that all is there
        classes = settings.maps_of(shown) if settings.own_background else shown + 1
        seeds.write_maps(seeds.maps_file(file.parent, file.stem), maps, classes)
    label = pseudo_label(image, maps, np.ones(len(shown)), settings)
    if settings.source == "cam":
        classes = np.arange(256)
        classes[1 : len(shown) + 1] = shown + 1
        label = classes[label]
    write_mask(file, label)


def claim(out: Path, settings: dict) -> None:
    """Write settings.json, or make sure that the one there says the same."""
    file, settings = out / "settings.json", json.loads(json.dumps(settings))  # as they are read again
    if not file.exists():
        if any(out.glob("*.png")):
            raise DataError(out, "holds pictures, and no settings.json that says how they were made: take another one")
        write_json(file, settings)
        return
    before = read_json(file)
    differing = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
    if differing:
        changes = ", ".join(f"{key}: {before.get(key)} then, {settings.get(key)} now" for key in differing)
        raise DataError(out, f"holds labels made otherwise ({changes}): take another folder, or empty this one")
