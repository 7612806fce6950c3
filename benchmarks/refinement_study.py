"""What PAR and dense CRFs make of class maps that were degraded: the mIoU before and after, and a picture.

    python benchmarks/refinement_study.py --data DIR [--images N]   # measures; writes docs/refinement_study.json
    python benchmarks/refinement_study.py --tables                  # writes its table into README.md
    python benchmarks/refinement_study.py --picture                 # draws docs/refinement.png

DIR has the layout of PASCAL VOC: JPEGImages, SegmentationClass (255 is ignored) and ImageSets/*.txt; a folder `msrc`
in it with the same layout is a second part, with classes of its own. The picture is of a photograph that comes with
scikit-image, whose classes are clusters of its colours: photographs with masks are not ours to distribute.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from toco_kernels import affinity_refine, dense_crf
from toco_kernels.cli.demo import pictures, refinement

ROOT = Path(__file__).parents[1]
RESULT, PICTURE, README = ROOT / "docs/refinement_study.json", ROOT / "docs/refinement.png", ROOT / "README.md"
IGNORED = 255
BLUR = 16  # pixels: the standard deviation
NOISE, PATCH = 0.5, 16  # the standard deviation added to masks of 0 .. 1, and how far apart in pixels it is drawn
LEAST = 0.05  # no class of the photograph is ruled out anywhere
SURE = 0.7  # how probable the label of a pixel is where a CRF gets labels

Refinement = Callable[[Tensor, Tensor], Tensor]  # image (1, 3, H, W) in 0..255, probabilities (1, C, H, W) -> the same


def degraded(
    labels: np.ndarray,  # (H, W)
    classes: np.ndarray,  # (C)
    seed: int,
) -> Tensor:  # (1, C, H, W), probabilities
    """The masks of the classes, blurred, and with noise that is as smooth as the class maps of a ViT are."""
    patches = [-(-pixels // PATCH) for pixels in labels.shape]
    noise = torch.randn(1, len(classes), *patches, generator=torch.Generator().manual_seed(seed))
    masks = (labels == classes[:, None, None]).astype(np.float32)
    maps = torch.from_numpy(gaussian_filter(masks, (0, BLUR, BLUR), mode="nearest"))[None]
    maps = (maps + NOISE * F.interpolate(noise, size=labels.shape, mode="bilinear")).clamp(LEAST, 1)
    return maps / maps.sum(dim=1, keepdim=True)


def crf(**options) -> Refinement:
    """Mean field on the lattice, 10 iterations."""
    return lambda image, maps: dense_crf(image, maps, kernel="lattice", **options)


def crf_of_labels(**options) -> Refinement:
    """The same, of labels that are probably right."""

    def refine(image: Tensor, maps: Tensor) -> Tensor:
        classes = maps.shape[1]
        others = (1 - SURE) / max(classes - 1, 1)
        sure = F.one_hot(maps.argmax(dim=1), classes).movedim(-1, 1)
        return crf(**options)(image, sure * (SURE - others) + others)

    return refine


def par_at_half_size(image: Tensor, maps: Tensor) -> Tensor:
    """10 iterations, between two resizes."""
    half = F.interpolate(image / 255, scale_factor=0.5, mode="bilinear")
    maps = F.interpolate(maps, size=half.shape[2:], mode="bilinear")
    return F.interpolate(affinity_refine(half, maps), size=image.shape[2:], mode="bilinear")


REFINEMENTS: dict[str, Refinement] = {
    "degraded": lambda image, maps: maps,
    "PAR": lambda image, maps: affinity_refine(image / 255, maps),
    "PAR at half the size, as in ToCo's training": par_at_half_size,
    "CRF, as in ToCo's evaluation": crf(gaussian=(1.0, 1.0), bilateral=(121.0, 5.0, 4.0)),
    "CRF, as in ViT-PCM": crf(gaussian=(1.0, 3.0), bilateral=(67.0, 3.0, 4.0)),
    "CRF of labels, as in PPC": crf_of_labels(gaussian=(3.0, 3.0), bilateral=(50.0, 5.0, 10.0)),
}


def names(folder: Path) -> list[str]:
    """The photographs of a part, in the order of its lists."""
    lists = (folder / "ImageSets" / f"{split}.txt" for split in ("train", "val"))
    return [name for file in lists for name in file.read_text().split()]


def scenes(folder: Path, most: int) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Photographs (1, 3, H, W) in 0..255 and their labels (H, W); `most` of them, evenly from the list."""
    chosen = names(folder)
    for i in range(min(most, len(chosen))):
        name = chosen[i * len(chosen) // min(most, len(chosen))]
        pixels = np.array(Image.open(folder / "JPEGImages" / f"{name}.jpg").convert("RGB"))
        labels = np.array(Image.open(folder / "SegmentationClass" / f"{name}.png")).astype(np.int64)
        yield torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), labels


def study(folder: Path, most: int, refinements: dict[str, Refinement]) -> tuple[int, dict[str, float]]:
    """How many photographs there were, and the mIoU over all their pixels after each refinement, in percent."""
    counts = {name: np.zeros((IGNORED, IGNORED), np.int64) for name in refinements}
    photographs = 0
    for image, labels in scenes(folder, most):
        classes = np.setdiff1d(labels, [IGNORED])
        maps = degraded(labels, classes, seed=photographs)
        known = labels != IGNORED
        for name, refine in refinements.items():
            found = classes[refine(image, maps)[0].argmax(dim=0).numpy()]
            pairs = np.bincount(labels[known] * IGNORED + found[known], minlength=IGNORED**2)
            counts[name] += pairs.reshape(IGNORED, IGNORED)
        photographs += 1
    return photographs, {name: mean_iou(confusion) for name, confusion in counts.items()}


def mean_iou(confusion: np.ndarray) -> float:  # (C, C): pixels of a class, found as another
    """The mean over the classes that there are of intersection over union, in percent."""
    right, union = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return 100 * float((right[union > 0] / union[union > 0]).mean())


def measure(data: Path, most: int) -> dict:
    """The study of every part of the data."""
    parts = {"VOC": data, "MSRC": data / "msrc"}
    result = {"blur": BLUR, "noise": NOISE, "patch": PATCH, "parts": {}}
    for part, folder in parts.items():
        if folder.exists():
            photographs, scores = study(folder, most, REFINEMENTS)
            result["parts"][part] = {"photographs": photographs, "miou": {k: round(v, 2) for k, v in scores.items()}}
            print(part, result["parts"][part])
    return result


def table(result: dict) -> str:
    """In Markdown."""
    parts = result["parts"]
    header = ["mIoU, %", *(f"{name}, {part['photographs']} photographs" for name, part in parts.items())]
    rows = [header, ["---"] * len(header)]
    rows += [[name, *(f"{part['miou'][name]:.1f}" for part in parts.values())] for name in REFINEMENTS]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_table() -> None:
    """Into the README, between its markers."""
    start, end = "<!-- refinement study -->\n", "<!-- /refinement study -->"
    content = start + table(json.loads(RESULT.read_text())) + end
    README.write_text(re.sub(f"{start}.*?{end}", lambda _: content, README.read_text(), flags=re.DOTALL))


def draw() -> None:
    """A photograph, the labels it was degraded from, and what became of them."""
    photograph = next(p for p in pictures.shipped_photographs() if p.name == "coffee")
    scene = refinement.coarse_scene(photograph, None)
    image = torch.from_numpy(scene.pixels).permute(2, 0, 1)[None].float()
    maps = degraded(scene.labels, scene.classes, seed=0)
    chosen = {"degraded": "degraded", "PAR": "PAR", "CRF": "CRF, as in ViT-PCM"}
    panels = [("clusters of colour and position", pictures.painted(scene.pixels, scene.labels))]
    for caption, name in chosen.items():
        labels = scene.labels_of(REFINEMENTS[name](image, maps))
        share = pictures.agreement(labels, scene.labels)
        panels.append((f"{caption}: {share:.1%} agree", pictures.painted(scene.pixels, labels)))
    pictures.write(pictures.side_by_side(panels), PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="measure on these photographs")
    parser.add_argument("--images", type=int, default=sys.maxsize, metavar="N", help="at most so many of each part")
    parser.add_argument("--tables", action="store_true", help="write the README's table")
    parser.add_argument("--picture", action="store_true", help="draw the picture")
    args = parser.parse_args()
    if args.data:
        RESULT.write_text(json.dumps(measure(args.data, args.images), indent=1) + "\n")
    if args.tables:
        write_table()
    if args.picture:
        draw()


if __name__ == "__main__":
    main()
