"""Draws what `measured` found: peaks of whole steps over the crop, and of operators at the largest."""

from pathlib import Path

import matplotlib

from .fit import Model

COLOURS = {"published": "#b0413e", "toco_kernels": "#2a6f97"}
NAMES = {"published": "published", "toco_kernels": "fused"}


def draw(found: dict, file: Path) -> None:
    """Write the picture; its format is that of the file's name."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (steps, operators) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for provider, colour in COLOURS.items():
        cases = [row for row in found["steps"] if row["provider"] == provider and row["batch"] == found["batch"]]
        cases = sorted((row["crop"], row["mb"]) for row in cases if row["mb"])
        steps.plot(*(zip(*cases, strict=True) if cases else ([], [])), "o", color=colour, label=NAMES[provider])
        if cases and found["models"].get(provider):
            model = Model(**found["models"][provider])
            crops = range(cases[0][0], cases[-1][0] + 1, 16)
            steps.plot(crops, [model.peak_mb(crop, found["batch"]) for crop in crops], color=colour, linewidth=1)
    if found["budget_mb"]:
        steps.axhline(found["budget_mb"], color="black", linestyle=":", label="budget")
    steps.set(xlabel="crop, pixels", ylabel="peak of a step, MB", ylim=(0, None))
    steps.set_title(f"{found['method']}, {found['batch']} images, {found['device']}")
    steps.legend()

    crop = max((row["crop"] for row in found["operators"]), default=0)  # an interrupted command may have none
    rows = [row for row in found["operators"] if row["crop"] == crop]
    names = list(dict.fromkeys(row["operator"] for row in rows))
    for i, (provider, colour) in enumerate(COLOURS.items()):
        peaks = [
            next((r["mb"] or 0 for r in rows if (r["operator"], r["provider"]) == (n, provider)), 0) for n in names
        ]
        positions = [place + 0.4 * i - 0.2 for place in range(len(names))]
        operators.barh(positions, peaks, height=0.4, color=colour, label=NAMES[provider])
    operators.set_yticks(range(len(names)), names)
    operators.invert_yaxis()
    operators.set(xlabel=f"peak of an operator, MB, {crop} pixels")
    figure.savefig(file)
    plt.close(figure)
