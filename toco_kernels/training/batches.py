"""Batches: which sample comes when, and what happens where one cannot be read.

Everything depends on the seed and on the step alone: not on the number of processes, on workers, or on what ran before.
So a resumed run sees what it would have seen, and two processes see the halves of the batch that one would see.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from . import seeds
from .files import DataError, read_mask
from .pseudo_labels import Data
from .views import keyed


class Order(Sampler):
    """The samples of every step of one process, from step `start` on: lists of (epoch, index).

    One epoch follows the other without a gap, so a batch may hold the end of one and the beginning of the next.

    Args:
        samples: how many there are.
        batch_size: of all processes together; `world` divides it.
        start, stop: the first step, and the first that is none any more.
        seed: of the order.
        rank, world: which process this is, of how many.
    """

    def __init__(self, samples: int, batch_size: int, start: int, stop: int, *, seed: int, rank: int, world: int):
        if batch_size % world:
            raise ValueError(f"batch_size must be divisible by the number of processes, {world}, got {batch_size}")
        self.samples, self.batch_size, self.start, self.stop = samples, batch_size, start, stop
        self.seed, self.rank, self.share = seed, rank, batch_size // world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffled: dict[int, np.ndarray] = {}
        for step in range(self.start, self.stop):
            first = step * self.batch_size + self.rank * self.share
            batch = []
            for position in range(first, first + self.share):
                epoch, place = divmod(position, self.samples)
                if epoch not in shuffled:
                    shuffled = {e: order for e, order in shuffled.items() if e >= epoch - 1}
                    shuffled[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
                batch.append((epoch, int(shuffled[epoch][place])))
            yield batch


class Samples(Dataset):
    """A photograph, its image labels and its views. One that cannot be read is replaced by the next one that can.

    Args:
        data: photographs and image labels.
        views: from a photograph (H, W, 3) to a dictionary of tensors, with torch's random numbers.
        seed: of those.
        saliency: whether `views` takes the photograph's saliency map (H, W) beside it.
        seeds_of: None, or a folder with a label NAME.png (H, W) for photographs, which `views` takes beside them. Those
            that have none are no samples.
    """

    def __init__(
        self,
        data: Data,
        views: Callable[..., dict],
        seed: int,
        *,
        saliency: bool = False,
        seeds_of: Path | None = None,
    ):
        self.data, self.views, self.seed, self.saliency, self.seeds_of = data, views, seed, saliency, seeds_of
        self.indices = range(len(data))
        if seeds_of is not None:
            self.indices = [i for i in self.indices if seeds.label_file(seeds_of, data.names[i]).is_file()]
            if not self.indices:
                raise DataError(seeds.label_file(seeds_of, data.names[0]), f"is missing; so are all {len(data)} labels")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, wanted = key
        problems = []
        for offset in range(len(self)):
            index = self.indices[(wanted + offset) % len(self)]
            try:
                pictures = [self.data.image(index)]
                if self.saliency:
                    pictures.append(self.data.saliency(index))
                if self.seeds_of is not None:
                    file = seeds.label_file(self.seeds_of, self.data.names[index])
                    pictures.append(read_mask(file, len(self.data.classes), pictures[0].shape[:2]))
            except DataError as error:
                problems.append(str(error))
                continue
            with keyed(self.seed, epoch, wanted), one_thread():
                sample = self.views(*pictures)
            return sample | {"image_labels": torch.from_numpy(self.data.labels(index)), "problems": problems}
        raise DataError(
            self.data.names[self.indices[wanted]], f"and all other photographs cannot be used; {problems[0]}"
        )


def collate(samples: list[dict]) -> dict:
    """A batch; `problems` is what could not be read."""
    problems = [problem for sample in samples for problem in sample.pop("problems")]
    return default_collate(samples) | {"problems": problems}


def loader(samples: Samples, order: Order, *, workers: int = 0, pin: bool = False) -> DataLoader:
    """The batches of one process."""
    return DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Pictures are too small for more: threads that wait for each other take nine times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
