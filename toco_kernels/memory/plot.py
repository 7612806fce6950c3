"""Draws what `measured` found: peaks of whole steps over the crop, and of operators at the largest."""

from pathlib import Path

import matplotlib

from .fit import PATCH, Model

COLOURS = {"published": "#b0413e", "toco_kernels": "#2a6f97"}
NAMES = {"published": "published", "toco_kernels": "fused"}


def draw(found: dict, file: Path) -> None:
    """Write the picture; its format is that of the file's name. An interrupted command has found less, or nothing."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (steps, operators) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    figure.suptitle(
        f"{found['method']} on {found['device']}: {found['backbone']}, {found['batch']} images, "
        f"{found['classes']} classes"
    )
    _draw_steps(found, steps)
    _draw_operators(found, operators)
    figure.savefig(file)
    plt.close(figure)


def _draw_steps(found: dict, axes) -> None:
    """Points that were measured, the fit through them, and on to the largest crop that fits the budget."""
    crops = set()
    for provider, colour in COLOURS.items():
        rows = [row for row in found["steps"] if row["provider"] == provider and row["batch"] == found["batch"]]
        cases = sorted((row["crop"], row["mb"]) for row in rows if row["mb"])
        axes.plot(*(zip(*cases, strict=True) if cases else ([], [])), "o", color=colour, label=NAMES[provider])
        for row in rows:
            crops.add(row["crop"])
            if row["failure"]:
                place = {"xycoords": ("data", "axes fraction"), "rotation": 90, "va": "top", "ha": "right"}
                axes.annotate(f"{NAMES[provider]}: {row['failure'][:40]}", (row["crop"], 0.98), color=colour, **place)
        if cases and found["models"].get(provider):
            model, last = Model(**found["models"][provider]), max([cases[-1][0], *_largest_crop(found, provider)])
            curve = range(cases[0][0], last + 1, PATCH)
            axes.plot(curve, [model.peak_mb(crop, found["batch"]) for crop in curve], color=colour, linewidth=1)
            crops.update(_largest_crop(found, provider))
    if found["budget_mb"]:
        axes.axhline(found["budget_mb"], color="black", linestyle=":", label="budget")
    axes.set_xticks(sorted(crops), sorted(crops), rotation=90)
    axes.set(xlabel="crop, pixels", ylabel="peak of a step, MB", ylim=(0, None))
    axes.legend()


def _largest_crop(found: dict, provider: str) -> list[int]:
    """Of the budget, if there is one that fits."""
    wanted = {"provider": provider, "wanted": "crop"}.items()
    return [row["crop"] for row in found.get("largest", []) if row.items() >= wanted and row["crop"]]


def _draw_operators(found: dict, axes) -> None:
    crop = max((row["crop"] for row in found["operators"]), default=0)
    rows = {(row["operator"], row["provider"]): row for row in found["operators"] if row["crop"] == crop}
    names = list(dict.fromkeys(name for name, _ in rows))
    for i, (provider, colour) in enumerate(COLOURS.items()):
        known = [(place, rows[name, provider]) for place, name in enumerate(names) if (name, provider) in rows]
        positions = [place + 0.4 * i - 0.2 for place, _ in known]
        bars = axes.barh(positions, [row["mb"] or 0 for _, row in known], height=0.4, color=colour)
        axes.bar_label(bars, [f" {row['failure'][:40] or format(row['mb'], '.3g')}" for _, row in known], fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel=f"peak of an operator beyond its inputs, MB, {crop} pixels")
