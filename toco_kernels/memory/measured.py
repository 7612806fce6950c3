"""Measures a method's operators and whole steps, each in a process of its own, and finds what fits a budget."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..common import benchmarks, measure
from ..common.measure import MB, OUT_OF_MEMORY, Outcome
from .fit import PATCH, Model
from .methods import METHODS, Setting, width_of

PROVIDERS = "published", "toco_kernels"
LEAST_CROP = 112  # ToCo cuts several local crops of 96 pixels
TRIES = 4  # to find the largest case that fits by measuring


@dataclass
class Plan:
    """What to measure.

    Args:
        method: one of `METHODS`.
        crops: sides of images in pixels, multiples of 16 and at least 112.
        batch: images of a step.
        classes: without background.
        backbone: one of timm's ViTs.
        budget_mb: what a step may take; None: no budget.
        check: whether what is predicted to fit is measured too.
        say: is told about each case before it is measured.
    """

    method: str = "toco"
    crops: list[int] = field(default_factory=lambda: [448, 640, 768, 1024])
    batch: int = 4
    classes: int = 80
    backbone: str = "deit_base_patch16_224"
    budget_mb: float | None = None
    check: bool = True
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)


def measured(plan: Plan) -> dict:
    """Everything that was found, for JSON.

    Returns:
        The plan; `device`; `operators` and `steps`, rows of {operator, crop, batch, provider, mb, failure}, where a
        row has an `mb` or a `failure`; `places`, where in a step the peak is; `models`, the fit for each provider; and
        with a budget `largest`, rows of {provider, crop, batch, mb, how}.
    """
    benchmarks.make_importable()
    found = {
        "method": plan.method,
        "backbone": plan.backbone,
        "batch": plan.batch,
        "classes": plan.classes,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "budget_mb": plan.budget_mb,
        "operators": _operators(plan),
        "steps": [],
    }
    for crop in plan.crops:
        for provider in PROVIDERS:
            found["steps"].append(_step(plan, provider, crop, plan.batch))
    if plan.batch > 1:  # tells apart what is there once and what every image takes
        found["steps"] += [_step(plan, provider, min(plan.crops), 1) for provider in PROVIDERS]
    found["places"] = [_place(plan, found["steps"], provider) for provider in PROVIDERS]
    if plan.budget_mb is not None:
        found["largest"] = [row for provider in PROVIDERS for row in _largest(plan, found["steps"], provider)]
    models = {provider: _model(found["steps"], provider) for provider in PROVIDERS}
    found["models"] = {provider: model and vars(model) for provider, model in models.items()}
    return found


def _operators(plan: Plan) -> list[dict]:
    rows, width = [], width_of(plan.backbone)
    for crop in plan.crops:
        setting = Setting(crop, plan.batch, plan.classes, width)
        for operator in METHODS[plan.method]:
            for provider in PROVIDERS:
                plan.say(f"{operator.name}, {crop} pixels, {provider}")
                module = operator.module(provider)
                outcome = measure.try_peak_mb(
                    "harness:prepare_training",
                    *(module, operator.name, operator.sizes(setting), provider),
                    limit_mb=_available_mb(),
                )
                rows.append(_row(outcome, operator=operator.name, crop=crop, batch=plan.batch, provider=provider))
    return rows


def _step(plan: Plan, provider: str, crop: int, batch: int) -> dict:
    plan.say(f"a step of {plan.method}, {batch} x {crop} pixels, {provider}")
    where = plan.method, provider, plan.backbone, plan.classes, batch, crop
    outcome = measure.try_peak_mb("whole_step:prepare", *where, limit_mb=_available_mb())
    return _row(outcome, operator="step", crop=crop, batch=batch, provider=provider)


def _row(outcome: Outcome, **what) -> dict:
    return what | {"mb": outcome.value and float(f"{outcome.value:.4g}"), "failure": outcome.failure}


def _place(plan: Plan, steps: list[dict], provider: str) -> dict:
    """Where the peak of the largest step is that could be measured."""
    crop = max((row["crop"] for row in steps if row["provider"] == provider and not row["failure"]), default=None)
    if crop is None:
        return {"provider": provider, "crop": None, "failure": "no step could be measured"}
    plan.say(f"where the peak of {provider} is, {crop} pixels")
    batch = max(row["batch"] for row in steps if (row["provider"], row["crop"], row["failure"]) == (provider, crop, ""))
    where = plan.method, provider, plan.backbone, plan.classes, batch, crop
    outcome = measure.in_process("whole_step:place_of_peak", *where, limit_mb=_available_mb())
    return {"provider": provider, "crop": crop, "batch": batch, **(outcome.value or {}), "failure": outcome.failure}


def _model(steps: list[dict], provider: str) -> Model | None:
    cases = [(row["crop"], row["batch"], row["mb"]) for row in steps if row["provider"] == provider and row["mb"]]
    return Model.of(cases) if cases else None


def _largest(plan: Plan, steps: list[dict], provider: str) -> list[dict]:
    """The largest crop for the batch, and the largest batch for each crop; the first of both is measured."""
    if _model(steps, provider) is None:
        return []
    rows = [_answer(plan, steps, provider, batch=plan.batch)]
    for crop in plan.crops:
        rows.append(_answer(plan, steps, provider, crop=crop, check=crop == min(plan.crops)))
    return rows


def _answer(plan: Plan, steps: list[dict], provider: str, *, crop=None, batch=None, check: bool = True) -> dict:
    """The largest crop for a batch, or batch for a crop: by the model, and measured until the model agrees with it."""
    wanted, given = ("crop", {"batch": batch}) if crop is None else ("batch", {"crop": crop})
    least, unit = (LEAST_CROP, PATCH) if wanted == "crop" else (1, 1)
    for tries in range(TRIES + 1):
        model = _model(steps, provider)
        if wanted == "crop":
            size = model.largest_crop(batch, plan.budget_mb)
        else:
            size = model.largest_batch(crop, plan.budget_mb)
        seen = [row for row in steps if row.items() >= ({"provider": provider} | given).items()]
        size = max([size, *(row[wanted] for row in seen if row["mb"] and row["mb"] <= plan.budget_mb)])
        size = min([size, *(row[wanted] - unit for row in seen if row["mb"] and row["mb"] > plan.budget_mb)])
        case = {"crop": crop, "batch": batch, wanted: size}
        answer = {"provider": provider, "wanted": wanted, **case}
        if size < least:
            return answer | {wanted: 0, "mb": None, "how": "nothing fits"}
        predicted = answer | {"mb": float(f"{model.peak_mb(**case):.4g}"), "how": "predicted"}
        row = next((row for row in seen if row[wanted] == size), None)
        if row and row["failure"]:
            return predicted | {"how": f"predicted; measured here: {row['failure']}"}
        if row:
            return answer | {"mb": row["mb"], "how": "measured"}
        if not (plan.check and check) or tries == TRIES:
            return predicted
        steps.append(_step(plan, provider, **case))


def _available_mb() -> float | None:
    """What this machine can give a process on the CPU; a GPU's allocator has a limit of its own."""
    if torch.cuda.is_available():
        return None
    lines = Path("/proc/meminfo").read_text()
    return float(lines.split("MemAvailable:")[1].split()[0]) * 1024 / MB


def ran_out(row: dict) -> bool:
    """Whether this case needed more memory than there is."""
    return row["failure"].startswith(OUT_OF_MEMORY)
