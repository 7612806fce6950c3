"""Measures a method's operators and whole steps, each in a process of its own, and finds what fits a budget."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import __version__
from .._library import build_info
from ..common import benchmarks, measure
from ..common.errors import bad_value
from ..common.measure import MB, Outcome
from .fit import PATCH, Model
from .methods import METHODS, Setting
from .store import Store

PROVIDERS = "published", "toco_kernels"
LEAST_CROP = 112  # ToCo cuts several local crops of 96 pixels
TRIES = 4  # to find the largest case that fits by measuring
VERIFIED = 2, LEAST_CROP  # images, and their size, of the step that is verified before any is measured
TOLERANCE = 1e-2  # of a loss and of the gradient: a threshold may round to another side


@dataclass
class Plan:
    """What to measure.

    Args:
        method: one of `METHODS`.
        crops: sides of images in pixels, multiples of 16 and at least 112.
        batch: images of a step.
        classes: without background.
        backbone: one of timm's; None: the method's.
        budget_mb: what a step may take; None: no budget.
        check: whether what is predicted to fit is measured too.
        cases: a file that keeps every case that was measured, from which another call goes on; None: nothing is kept.
        say: is told about each case before it is measured.
    """

    method: str = "toco"
    crops: list[int] = field(default_factory=lambda: [448, 640, 768, 1024])
    batch: int = 4
    classes: int = 80
    backbone: str | None = None
    budget_mb: float | None = None
    check: bool = True
    cases: Path | None = None
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)


class Measurement:
    """Everything about a plan, case by case.

    Args:
        plan: what to measure.

    Attributes:
        found: what is known so far, for JSON: the plan; `device`; `verified`, how far losses and gradients of the fused
            step are from the published ones; `operators` and `steps`, rows of {operator, crop, batch, provider, mb,
            failure}, where a row has an `mb` or a `failure`; `places`, where in a step the peak is; `models`, the fit
            for each provider; and with a budget `largest`, rows of {provider, crop, batch, mb, how}.

    Raises:
        ValueError: the backbone is not for the method, or `plan.cases` is a file of something else.
    """

    def __init__(self, plan: Plan):
        benchmarks.make_importable()
        self.plan, self.method = plan, METHODS[plan.method]
        self.backbone = plan.backbone or self.method.backbone
        self.width = self.method.width_of(self.backbone)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        made_with = {"device": device, "torch": torch.__version__, "version": __version__, "build": build_info()}
        self.store = Store(plan.cases, made_with)
        self.found = {
            "method": plan.method,
            "backbone": self.backbone,
            "batch": plan.batch,
            "classes": plan.classes,
            "device": device,
            "budget_mb": plan.budget_mb,
            "verified": None,
            "operators": [],
            "steps": [],
            "places": [],
            "models": {},
        }
        self.steps = self.found["steps"]

    def run(self) -> dict:
        """Measure, and return `found`.

        Raises:
            ArithmeticError: the fused step does not compute what the published one does; nothing is measured then.
            ValueError: a step of it fails.
        """
        plan, found = self.plan, self.found
        self._verify()
        self._operators()
        for crop in plan.crops:
            for provider in PROVIDERS:
                self._step(provider, crop, plan.batch)
        if plan.batch > 1 or len(plan.crops) == 1:  # tells apart what is there once and what every image takes
            for provider in PROVIDERS:
                self._step(provider, min(plan.crops), 1 if plan.batch > 1 else 2)
        for provider in PROVIDERS:
            found["places"].append(self._place(provider))
        if plan.budget_mb is not None:
            found["largest"] = []
            for provider in PROVIDERS:
                self._largest(provider)
        models = {provider: _model(self.steps, provider) for provider in PROVIDERS}
        found["models"] = {provider: model and vars(model) for provider, model in models.items()}
        return found

    def _ask(self, said: str, function: str, *args: object, peak: bool = False) -> Outcome:
        """A case in a process of its own, unless it is known."""
        limit_mb = _available_mb()
        call = measure.try_peak_mb if peak else measure.in_process

        def in_process() -> Outcome:
            self.plan.say(said)
            return call(function, *args, limit_mb=limit_mb)

        return self.store.get(json.dumps([function, *args]), in_process)

    def _verify(self) -> None:
        plan = self.plan
        said = f"whether a fused step of {plan.method} is the published one"
        outcome = self._ask(said, "whole_step:errors", plan.method, self.backbone, plan.classes, *VERIFIED)
        if outcome.failure:
            raise bad_value("backbone", "be one whose step runs here", f"{self.backbone}: {outcome.failure}")
        self.found["verified"] = outcome.value
        wrong = [f"{name} (error {error:.2g})" for name, error in outcome.value.items() if not error <= TOLERANCE]
        if wrong:
            raise ArithmeticError(f"the fused step is not the published one, so not measured: {', '.join(wrong)}")

    def _operators(self) -> None:
        plan = self.plan
        for crop in plan.crops:
            setting = Setting(crop, plan.batch, plan.classes, self.width)
            for operator in self.method.operators:
                for provider in PROVIDERS:
                    module = operator.module(provider)
                    outcome = self._ask(
                        f"{operator.name}, {crop} pixels, {provider}",
                        "harness:prepare_training",
                        *(module, operator.name, operator.sizes(setting), provider),
                        peak=True,
                    )
                    row = _row(outcome, operator=operator.name, crop=crop, batch=plan.batch, provider=provider)
                    self.found["operators"].append(row)

    def _step(self, provider: str, crop: int, batch: int) -> None:
        method, classes = self.plan.method, self.plan.classes
        said = f"a step of {method}, {batch} x {crop} pixels, {provider}"
        where = method, provider, self.backbone, classes, batch, crop
        outcome = self._ask(said, "whole_step:prepare", *where, peak=True)
        self.steps.append(_row(outcome, operator="step", crop=crop, batch=batch, provider=provider))

    def _place(self, provider: str) -> dict:
        """Where the peak of the largest step is that could be measured."""
        measured = [row for row in self.steps if row["provider"] == provider and not row["failure"]]
        if not measured:
            return {"provider": provider, "crop": None, "failure": "no step could be measured"}
        crop, batch = max((row["crop"], row["batch"]) for row in measured)
        said = f"where the peak of {provider} is, {crop} pixels"
        where = self.plan.method, provider, self.backbone, self.plan.classes, batch, crop
        outcome = self._ask(said, "whole_step:place_of_peak", *where)
        return {"provider": provider, "crop": crop, "batch": batch, **(outcome.value or {}), "failure": outcome.failure}

    def _largest(self, provider: str) -> None:
        """The largest crop for the batch, and the largest batch for each crop; the first of both is measured."""
        if _model(self.steps, provider) is None:
            return
        rows, crops = self.found["largest"], self.plan.crops
        rows.append(self._answer(provider, batch=self.plan.batch))
        for crop in crops:
            rows.append(self._answer(provider, crop=crop, check=crop == min(crops)))

    def _answer(self, provider: str, *, crop=None, batch=None, check: bool = True) -> dict:
        """The largest crop for a batch, or batch for a crop: by the model, and measured until the model agrees."""
        budget_mb, steps = self.plan.budget_mb, self.steps
        wanted, given = ("crop", {"batch": batch}) if crop is None else ("batch", {"crop": crop})
        least, unit = (LEAST_CROP, PATCH) if wanted == "crop" else (1, 1)
        for tries in range(TRIES + 1):
            model = _model(steps, provider)
            if model.grows == 0:
                unknown = {"crop": crop, "batch": batch, wanted: 0, "mb": None, "how": "too few cases to tell"}
                return {"provider": provider, "wanted": wanted, **unknown}
            fits = model.largest_crop if wanted == "crop" else model.largest_batch
            size = fits(*given.values(), budget_mb)
            seen = [row for row in steps if row.items() >= ({"provider": provider} | given).items()]
            size = max([size, *(row[wanted] for row in seen if row["mb"] and row["mb"] <= budget_mb)])
            size = min([size, *(row[wanted] - unit for row in seen if row["mb"] and row["mb"] > budget_mb)])
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
            if not (self.plan.check and check) or tries == TRIES:
                return predicted
            self._step(provider, **case)


def _row(outcome: Outcome, **what) -> dict:
    return what | {"mb": outcome.value and float(f"{outcome.value:.4g}"), "failure": outcome.failure}


def _model(steps: list[dict], provider: str) -> Model | None:
    cases = [(row["crop"], row["batch"], row["mb"]) for row in steps if row["provider"] == provider and row["mb"]]
    return Model.of(cases) if cases else None


def _available_mb() -> float | None:
    """What this machine can give a process on the CPU; a GPU's allocator has a limit of its own."""
    if torch.cuda.is_available():
        return None
    lines = Path("/proc/meminfo").read_text()
    return float(lines.split("MemAvailable:")[1].split()[0]) * 1024 / MB
