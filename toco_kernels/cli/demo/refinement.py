"""Coarse class maps, refined to the borders in the photograph by the published code, by ours, and on NumPy arrays."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ... import affinity_refine
from ... import numpy as on_arrays
from ...affinity_refine import reference
from ...affinity_refine.op import DILATIONS
from ...common import measure
from ...testing import assert_labels_match
from .. import import_extra
from .compare import Outcome, Tensors, answers_here, device, side_by_side
from .pictures import IGNORED, Photograph, agreement

LONGEST = 320  # pixels: the published code takes seconds for that
PATCH = 16  # pixels: class maps of a ViT-B/16 have one value for each of its patches
ITERATIONS = 10  # ToCo's
CLUSTERS, POSITION = 4, 0.2  # of k-means: how many, and how much the position counts beside the colour


@dataclass(frozen=True)
class Scene:
    """A photograph at the size worked at, and coarse class maps of it."""

    name: str
    pixels: np.ndarray  # (H, W, 3) uint8
    labels: np.ndarray  # (H, W) class indices: what the maps were made of
    classes: np.ndarray  # (C) the indices that there are
    maps: Tensor  # (1, C, H, W) float32

    @property
    def inputs(self) -> Tensors:
        """Image (1, 3, H, W) in [0, 1], and maps."""
        image = torch.from_numpy(self.pixels).permute(2, 0, 1)[None].contiguous() / 255
        return image.to(device()), self.maps.to(device())

    def labels_of(self, scores: Tensor) -> np.ndarray:  # (1, C, H, W) -> (H, W)
        """The class index of the best score at each pixel."""
        return self.classes[scores[0].argmax(dim=0).cpu().numpy()]


def coarse_scene(photograph: Photograph, mask: np.ndarray | None) -> Scene:
    """A photograph made no larger than LONGEST, and the class maps of a mask, or of k-means, as coarse as a ViT's."""
    width, height = photograph.image.size
    shrink = min(1, LONGEST / max(width, height))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    pixels = np.array(photograph.image.resize(size[::-1]))
    if mask is None:
        labels = k_means(colours_and_places(pixels)).view(size)
    else:  # class indices below 2^24 are exact in float32
        labels = F.interpolate(torch.from_numpy(mask)[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
    classes = labels[labels != IGNORED].unique()
    maps = (labels == classes.view(-1, 1, 1)).float()[None]
    patches = [-(-pixel // PATCH) for pixel in size]
    maps = F.interpolate(F.interpolate(maps, size=patches, mode="area"), size=size, mode="bilinear")
    return Scene(photograph.name, pixels, labels.numpy(), classes.numpy(), maps)


def colours_and_places(pixels: np.ndarray) -> Tensor:  # (H, W, 3) -> (H * W, 5)
    """CIE Lab and the position of every pixel, all within about 1."""
    height, width = pixels.shape[:2]
    lab = import_extra("skimage.color", "demo").rgb2lab(pixels) / 100
    places = np.mgrid[:height, :width].transpose(1, 2, 0) / max(height, width)
    return torch.from_numpy(np.concatenate([lab, POSITION * places], axis=2)).float().flatten(0, 1)


def k_means(features: Tensor) -> Tensor:  # (N, D) -> (N)
    """The cluster of each row, after 20 of Lloyd's steps from rows far apart: nothing is random."""
    centres = features.mean(dim=0, keepdim=True)
    while len(centres) < CLUSTERS:
        farthest = torch.cdist(features, centres).amin(dim=1).argmax()
        centres = torch.cat([centres, features[farthest, None]])
    for _ in range(20):
        clusters = torch.cdist(features, centres).argmin(dim=1)
        sizes = clusters.bincount(minlength=CLUSTERS).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, clusters, features)
        centres = torch.where(sizes > 0, sums / sizes, centres)
    return clusters


def published_refinement(image: Tensor, maps: Tensor) -> Tensors:
    """PAR by the published sequence of operations."""
    return (reference.affinity_refine(image, maps, list(DILATIONS), ITERATIONS, "par"),)


def fused_refinement(image: Tensor, maps: Tensor) -> Tensors:
    """PAR by the public function."""
    return (affinity_refine(image, maps, dilations=DILATIONS, iterations=ITERATIONS, kind="par"),)


def refine(scenes: list[Scene], origin: str) -> tuple[list[np.ndarray], list[str]]:
    """Refine the class maps of all scenes, and print the table.

    Args:
        scenes: photographs with class maps.
        origin: what the class maps were made of, in words.

    Returns:
        The refined labels (H, W) of each scene, and what is wrong, which should be nothing.
    """
    shapes = (f"{scene.name} {tuple(scene.maps.shape[1:])}" for scene in scenes)
    print(f"class maps   of {origin}, made coarse by {PATCH}")
    print(f"             {', '.join(shapes)}")
    print(f"toco_kernels {answers_here('affinity_refine')}")
    where = "" if len(scenes) == 1 else f"; errors on all photographs, times and memory on {scenes[0].name}"
    print(f"\nrefinement by PAR, {ITERATIONS} iterations, float32{where}")
    inputs = [scene.inputs for scene in scenes]
    small_inputs = tuple(tensor[..., :PATCH, :PATCH] for tensor in inputs[0])
    providers = {"published": published_refinement, "toco_kernels": fused_refinement}
    outcome = side_by_side(providers, inputs, small_inputs)
    wrong = outcome.wrong + check_labels(outcome) + check_arrays(scenes[0].name, inputs[0], outcome)

    scores = [scores for (scores,) in outcome.outputs["toco_kernels"]]
    refined = [scene.labels_of(its_scores) for scene, its_scores in zip(scenes, scores, strict=True)]
    coarse = [scene.labels_of(scene.maps) for scene in scenes]
    expected = np.concatenate([scene.labels.ravel() for scene in scenes])
    before, after = (agreement(np.concatenate([*map(np.ravel, labels)]), expected) for labels in (coarse, refined))
    print(f"agreement with what the maps were made of: {before:.1%} of pixels when coarse, {after:.1%} when refined")
    return refined, wrong


def check_labels(outcome: Outcome) -> list[str]:
    """Compare the labels with those of the published code; return what is wrong with them."""
    differ, pixels, problem = 0, 0, ""
    for judge, (scores,) in zip(outcome.judges, outcome.outputs["toco_kernels"], strict=True):
        labels, published = scores.argmax(dim=1), judge.eager[0].argmax(dim=1)
        differ += int((labels != published).sum())
        pixels += labels.numel()
        try:
            assert_labels_match(labels, published, exact=[*judge.exact[0]], eager=[*judge.eager[0]])
        except AssertionError as wrong:
            problem = problem or str(wrong)
    print(f"labels: {differ} of {pixels} differ from the published ones, verified: {'NO' if problem else 'yes'}")
    return [f"labels: {problem}"] if problem else []


def check_arrays(name: str, inputs: Tensors, outcome: Outcome) -> list[str]:
    """Refine NumPy arrays on one thread, as a data-loading worker would; return what is wrong with the result."""
    arrays = [tensor.cpu().numpy() for tensor in inputs]

    def refine_arrays() -> np.ndarray:
        return on_arrays.affinity_refine(*arrays, dilations=DILATIONS, iterations=ITERATIONS, kind="par")

    refined = torch.from_numpy(refine_arrays()).to(device())
    verdict = outcome.judges[0].verdict((refined,))
    ms = measure.time_calls({"": refine_arrays}, rounds=5, seconds=2)[""].ms
    same = ", the same bits as on tensors" if torch.equal(refined, outcome.outputs["toco_kernels"][0][0]) else ""
    error = f"error {verdict.error:.1e}, verified: {verdict.word}"
    print(f"toco_kernels.numpy: {name} in {ms:.1f} ms on one thread{same}, {error}")
    return verdict.wrong("toco_kernels.numpy")
