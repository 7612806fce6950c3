"""With and without the contrast losses, from nothing on the shapes: three seeds each, and the table in the README.

    python docs/shapes_study.py [--out DIR] [--steps N]

It goes on where it stopped. All but the weights of `ptc` and `ctc` is the preset `shapes`; the numbers are of the
test split, which nothing was chosen by.
"""

import argparse
import json
from pathlib import Path

from toco_kernels.training.loop import train
from toco_kernels.training.recipes.toco import Recipe
from toco_kernels.training.trainer import Job

NUMBERS = ("cam_miou", "pseudo_label_miou", "seg_miou")
SEEDS = (0, 1, 2)


def settings(contrast: bool, steps: int | None) -> dict:
    """The preset, without the contrast losses if need be."""
    values = Recipe.preset("shapes", **({} if steps is None else {"steps": steps}))
    if contrast:
        return values
    stages = [
        {**stage, "weights": {name: w for name, w in stage["weights"].items() if name not in ("ptc", "ctc")}}
        for stage in values["config"]["stages"]
    ]
    return values | {"config": values["config"] | {"stages": stages}}


def main() -> None:
    """Train what is missing, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("shapes_study"))
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    rows = []
    for seed in SEEDS:
        for contrast in (True, False):
            run = args.out / f"{'with' if contrast else 'without'}-{seed}"
            if not (run / "metrics.json").exists():
                train(Job(run, "toco", settings(contrast, args.steps), seed=seed, checkpoint_every=25), resume=True)
            metrics = json.loads((run / "metrics.json").read_text())
            rows.append({"contrast": contrast, "seed": seed, "seconds": round(metrics["seconds"])})
            rows[-1] |= {name: round(metrics[name], 4) for name in NUMBERS}
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


def table(rows: list[dict]) -> str:
    """In percent, a line for each run."""
    lines = ["| contrast losses | seed | raw CAM | refined by PAR | segmentation |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (not row["contrast"], row["seed"])):
        numbers = " | ".join(f"{100 * row[name]:.1f}" for name in NUMBERS)
        lines.append(f"| {'with' if row['contrast'] else 'without'} | {row['seed']} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
