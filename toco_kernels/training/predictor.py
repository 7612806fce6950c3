"""A trained network on photographs of any size: CAMs, pseudo labels and segmentations, and how good they are."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from . import records, seeds
from .data import has_masks
from .miou import Confusion
from .pseudo_labels import Data
from .recipes import Recipe
from .refine import Settings, pseudo_label
from .views import as_tensor, normalised

GREY_SIDE = 64  # pixels: of a photograph of nothing


class Predictor:
    """A network and how it is asked.

    Args:
        recipe: of its method.
        module: the network.
        device: where it computes.
        precision: "float32", "bfloat16" or "float16".
        size: photographs are squashed to this side in pixels; None: they keep their size.
        seeds_of: the folder of class maps that a second stage refines, see `seeds`; None: there is no first one.
    """

    def __init__(
        self,
        recipe: Recipe,
        module: nn.Module,
        device: torch.device,
        *,
        precision: str = "float32",
        size: int | None = None,
        seeds_of: Path | None = None,
    ):
        self.recipe, self.module, self.device, self.size = recipe, module.to(device), device, size
        self.seeds_of = seeds_of
        self.autocast = autocast(device, precision)

    @torch.no_grad()
    def cams(
        self,
        image: np.ndarray,  # (H, W, 3)
        labels: np.ndarray,  # (C,)
        found: np.ndarray | None = None,  # (C, H, W) or (C + 1, H, W): what a second stage refines
    ) -> dict[str, np.ndarray]:  # (C, H, W)
        """The CAMs of one photograph by name, in [0, 1], 0 for absent classes."""
        self.module.eval()
        with self.autocast:
            given = [labels] if found is None else [labels, found]
            given = [torch.from_numpy(x)[None].to(self.device) for x in given]
            maps = self.recipe.cams(self.module, self._input(image), *given)
        return {name: self._output(cams, image) for name, cams in maps.items()}

    @torch.no_grad()
    def segmentation(
        self, image: np.ndarray, scales: Sequence[float] = (1.0,), flip: str | None = None, merge: str = "max"
    ) -> np.ndarray | None:  # (H, W, 3) -> (classes, H, W)
        """The class probabilities of one photograph; None: the method has no segmentation."""
        self.module.eval()
        with self.autocast:
            logits = self.recipe.predict(self.module, self._input(image), image.shape[:2], scales, flip, merge)
        return None if logits is None else logits.float().softmax(1)[0].cpu().numpy()

    def quantities(self) -> tuple[str, ...]:
        """What the method makes of a photograph: the names of its CAMs, and "seg" where it has a segmentation."""
        grey, classes = np.full((GREY_SIDE, GREY_SIDE, 3), 128, np.uint8), len(self.recipe.classes) - 1
        found = np.zeros((classes, GREY_SIDE, GREY_SIDE), np.float32) if self.recipe.seeds else None
        cams = self.cams(grey, np.zeros(classes, np.float32), found)
        return *cams, *(() if self.segmentation(grey) is None else ("seg",))

    def _found(self, data: Data, index: int, image: np.ndarray) -> np.ndarray | None:
        return None if self.seeds_of is None else seeds.of(self.seeds_of, data, index, image)

    def _input(self, image: np.ndarray) -> Tensor:  # (1, 3, H, W)
        photograph = as_tensor(image).to(self.device)[None]
        if self.size is not None:
            photograph = F.interpolate(photograph.float(), size=(self.size, self.size), mode="bilinear")
        return normalised(photograph, self.recipe.mean, self.recipe.std)

    def _output(self, maps: Tensor, image: np.ndarray) -> np.ndarray:  # (1, C, h, w) -> (C, H, W)
        """At the photograph's size."""
        maps = maps.float()
        if maps.shape[2:] != image.shape[:2]:
            maps = F.interpolate(maps, size=image.shape[:2], mode="bilinear")
        return maps[0].cpu().numpy()

    def evaluate(
        self, data: Data, settings: Settings, indices: Iterable[int], *, show_progress: bool = True
    ) -> dict[str, Confusion]:
        """How good the CAMs, the refined labels and the segmentation are on these photographs.

        A photograph that cannot be read is an error here: a mean over fewer is another number.
        """
        background = self.recipe.settings["background"]
        raw = Settings("none", background, background)
        results: dict[str, Confusion] = {}

        def count(name: str, truth: np.ndarray, prediction: np.ndarray) -> None:
            results.setdefault(name, Confusion(len(data.classes))).update(truth, prediction)

        for index in tqdm(list(indices), desc="evaluating", unit="image", leave=False, disable=not show_progress):
            image, labels, truth = data.image(index), data.labels(index), data.mask(index)
            maps = self.cams(image, labels, self._found(data, index, image))
            for name, cams in maps.items():
                count(name, truth, pseudo_label(image, cams, labels, raw))
            count("pseudo_label", truth, pseudo_label(image, maps["cam"], labels, settings))
            segmentation = self.segmentation(image)
            if segmentation is not None:
                count("seg", truth, segmentation.argmax(0))
        return results

    def picture(self, data: Data, settings: Settings, indices: Iterable[int]) -> np.ndarray:  # (H, W, 3) uint8
        """A row for each photograph: itself, its CAM, its refined label, the segmentation, the truth where known."""
        rows = []
        for index in indices:
            image, labels = data.image(index), data.labels(index)
            cams = self.cams(image, labels, self._found(data, index, image))["cam"]
            segmentation = self.segmentation(image)
            nothing = np.zeros(image.shape[:2], np.uint8)
            prediction = nothing if segmentation is None else segmentation.argmax(0).astype(np.uint8)
            refined = pseudo_label(image, cams, labels, settings)
            truth = [data.mask(index)] if has_masks(data) else []
            rows.append([image, records.heat(image, cams[-len(labels) :].max(0)), refined, prediction, *truth])
        return records.grid(rows)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Half precision where matrices are multiplied, or none."""
    half = precision != "float32"
    return torch.autocast(device.type, dtype=getattr(torch, precision) if half else None, enabled=half)
