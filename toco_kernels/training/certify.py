"""Does the fast path change training? Measured on the user's own data, against what rounding alone does.

From one seed, on the same batches, three copies of a network take the same steps:

    published   the published sequence of operations
    nudged      the same, from weights that are moved by one unit in the last place, up or down at random
    ours        the step that is trained with

No two programs round alike, and training amplifies every rounding: the nudged copy drifts away from the published one
for no reason at all. Ours may drift as far, twice at most. With d(t) the distance at step t from the published run, of
all weights or of one loss, and the mean over all steps and seeds,

    ratio = exp(mean(log d_ours - log d_nudged))  <=  2       d counts as 2⁻²² at least, two roundings of float32

Distances are relative: of weights to their norm, the geometric mean over all parameters; of a loss to the largest that
it was in the published run, or to a hundredth of the largest sum of all losses where that is more (the published
class-token contrast of crops that all show an object is nearly 0, and float32 has few digits of it). The mean of
logarithms weighs early steps as much as late ones, where everything has drifted apart: a loss that is wrong by 0.1 % is
seen in its first step.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from .files import write_json, write_whole
from .processes import Processes
from .trainer import Job, Trainer
from .views import seed_of

LIMIT = 2.0
LEAST = 2.0**-22
LEAST_SHARE = 0.01  # of the sum of losses
WEIGHTS = "weights"


@dataclass(frozen=True)
class Certificate:
    """What was measured.

    Args:
        steps: how many each copy took, from step `first` of the schedule on.
        seeds: of the runs.
        ours, nudged: for each quantity (seeds, steps) relative distances from the published run.
    """

    first: int
    steps: int
    seeds: tuple[int, ...]
    ours: dict[str, np.ndarray]
    nudged: dict[str, np.ndarray]

    @property
    def ratios(self) -> dict[str, float]:
        """How much further ours drifts than the nudged run, for each quantity."""
        return {name: _ratio(self.ours[name], self.nudged[name]) for name in self.ours}

    @property
    def passed(self) -> bool:
        """Whether no ratio is above the limit."""
        return max(self.ratios.values()) <= LIMIT

    def as_dict(self) -> dict:
        """Everything, for JSON."""
        curves = {"ours": self.ours, "nudged": self.nudged}
        return {
            "passed": self.passed,
            "limit": LIMIT,
            "ratios": self.ratios,
            "first": self.first,
            "steps": self.steps,
            "seeds": list(self.seeds),
            **{name: {key: value.tolist() for key, value in curve.items()} for name, curve in curves.items()},
        }

    def write(self, folder: Path) -> None:
        """certify.json and certify.svg."""
        write_json(folder / "certify.json", json.loads(json.dumps(self.as_dict())))
        picture = plot(self)
        write_whole(folder / "certify.svg", lambda path: path.write_text(picture, encoding="utf-8"))


def certify(job: Job, *, steps: int, seeds: Sequence[int], show_progress: bool = True) -> Certificate:
    """Train the three copies for `steps` steps from every seed."""
    values: dict[str, list[list[dict[str, float]]]] = {"published": [], "nudged": [], "ours": []}
    apart: dict[str, list[list[float]]] = {"nudged": [], "ours": []}
    first = 0
    with tqdm(total=steps * len(seeds), unit="step", disable=not show_progress) as bar:
        for seed in seeds:
            processes = Processes(0, 1, Processes.join(job.device).device)
            published = Trainer(replace(job, seed=seed), processes)
            recipe, first = published.recipe, published.recipe.certified_from()
            trainers = {"published": published, "nudged": _copy(published), "ours": _copy(published)}
            nudge_(trainers["nudged"].module, seed)
            for rows in (*values.values(), *apart.values()):
                rows.append([])
            for step, batch in zip(range(first, first + steps), published.batches(first, first + steps), strict=True):
                batch.pop("problems")
                for name, trainer in trainers.items():
                    forward = recipe.step if name == "ours" else recipe.published_step
                    values[name][-1].append(trainer.numbers(trainer.take(step, batch, forward)))
                for name, rows in apart.items():
                    rows[-1].append(distance(trainers[name].module, published.module))
                bar.update()
    return Certificate(first, steps, tuple(seeds), *(_distances(values, apart, name) for name in ("ours", "nudged")))


def _distances(values: dict[str, list], apart: dict[str, list], run: str) -> dict[str, np.ndarray]:  # (seeds, steps)
    """Of every loss, and of the weights, from the published run."""
    names = [*values["published"][0][0]]

    def curve(run: str, name: str) -> np.ndarray:
        return np.array([[losses[name] for losses in row] for row in values[run]])

    total = abs(curve("published", "loss")).max()
    distances = {}
    for name in names:
        expected = curve("published", name)
        distances[name] = abs(curve(run, name) - expected) / max(abs(expected).max(), LEAST_SHARE * total, 1e-30)
    return distances | {WEIGHTS: np.array(apart[run])}


def _copy(trainer: Trainer) -> Trainer:
    """Another trainer with the same weights."""
    twin = copy.copy(trainer)
    twin.module = twin.wrapped = copy.deepcopy(trainer.module)
    twin.optimizer = twin.recipe.optimizer(twin.module)
    for group in twin.optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    twin.scaler = torch.amp.GradScaler(trainer.processes.device.type, enabled=trainer.scaler.is_enabled())
    return twin


@torch.no_grad()
def nudge_(module: nn.Module, seed: int) -> None:
    """Move every parameter by one unit in the last place, up or down at random."""
    generator = torch.Generator().manual_seed(seed_of(seed, 1))
    for parameter in module.parameters():
        up = torch.rand(parameter.shape, generator=generator).to(parameter.device) < 0.5
        towards = torch.where(up, torch.inf, -torch.inf).to(parameter.dtype)
        parameter.copy_(torch.nextafter(parameter, towards))


@torch.no_grad()
def distance(module: nn.Module, other: nn.Module) -> float:
    """The geometric mean over all parameters, biases and matrices alike, of their relative L2 distances.

    One norm over everything would be that of a few: the biases of attention's keys have gradients that are rounding and
    nothing else, which Adam makes as large as any other, and a ReLU that is off by a rounding moves one matrix.
    """
    distances = [
        (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)
        for a, b in zip(module.parameters(), other.parameters(), strict=True)
    ]
    return torch.stack(distances).clamp(min=LEAST).log().mean().exp().item()


def _ratio(ours: np.ndarray, nudged: np.ndarray) -> float:
    """NaN counts as infinitely far."""
    ours, nudged = (np.maximum(np.nan_to_num(x, nan=np.inf), LEAST) for x in (ours, nudged))
    if np.isinf(nudged).any():
        raise ArithmeticError("the published training is no number: there is nothing to compare with")
    return float(np.exp(np.mean(np.log(ours) - np.log(nudged))))


def plot(certificate: Certificate) -> str:
    """The distances over the steps, as an SVG: a panel for each quantity, a line for each seed."""
    names, width, height, gap = [*certificate.ours], 220, 150, 60
    panels = []
    for index, name in enumerate(names):
        curves = [("#888", certificate.nudged[name]), ("#c00", certificate.ours[name])]
        lines = "".join(
            f'<polyline fill="none" stroke="{colour}" points="{_points(row, width, height)}"/>'
            for colour, rows in curves
            for row in rows
        )
        ticks = "".join(
            f'<line x1="0" x2="{width}" y1="{y}" y2="{y}" stroke="#ddd"/><text x="-6" y="{y + 4}" text-anchor="end">'
            f"1e{exponent}</text>"
            for exponent in (-6, -4, -2, 0)
            for y in [_height(10.0**exponent, height)]
        )
        title = f'<text x="0" y="-8">{name}: ratio {certificate.ratios[name]:.2f}</text>'
        panels.append(
            f'<g transform="translate({gap + index % 4 * (width + gap)},{40 + index // 4 * (height + gap)})">'
        )
        panels.append(f'<rect width="{width}" height="{height}" fill="none" stroke="#aaa"/>{ticks}{lines}{title}</g>')
    rows = -(-len(names) // 4)
    size = f'width="{4 * (width + gap) + gap}" height="{rows * (height + gap) + 60}"'
    verdict = "passed" if certificate.passed else "FAILED"
    caption = (
        f"{verdict}: relative distance from the published training over {certificate.steps} steps, "
        "ours red, published with nudged weights grey"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(panels)}'
        f'<text x="{gap}" y="{rows * (height + gap) + 45}">{caption}</text></svg>\n'
    )


def _height(value: float, height: int) -> float:
    """Logarithmic, from 1e-8 below to 10 above."""
    return height * (1 - np.log10(value * 1e8) / 9)


def _points(row: np.ndarray, width: int, height: int) -> str:
    places = np.linspace(0, width, len(row)) if len(row) > 1 else [0.0]
    values = np.clip(np.nan_to_num(row, nan=10.0), 1e-8, 10.0)
    return " ".join(f"{x:.1f},{_height(value, height):.1f}" for x, value in zip(places, values, strict=True))
