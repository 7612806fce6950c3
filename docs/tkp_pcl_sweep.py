"""How much each choice of ours matters in TKP-PCL: one value changed at a time, one seed, from nothing on the shapes.

    python docs/tkp_pcl_sweep.py [--out DIR] [--steps N]    # trains; writes docs/tkp_pcl_sweep.json, and the table
    python docs/tkp_pcl_sweep.py --table                    # writes the table into docs/tkp_pcl.md

K, the threshold, the weight and the form of the patch contrastive error could not be looked up. The numbers are of the
validation split: the test split is measured by `shapes_study.py` alone. It goes on where it stopped.
"""

import argparse
import json
import re
from pathlib import Path

import torch

from toco_kernels.training.checkpoints import newest
from toco_kernels.training.loop import train
from toco_kernels.training.predictor import Predictor
from toco_kernels.training.recipes.tkp_pcl import Recipe
from toco_kernels.training.refine import Settings
from toco_kernels.training.runs import Run
from toco_kernels.training.shapes import Shapes
from toco_kernels.training.trainer import Job

HERE = Path(__file__)
TUTORIAL, RESULTS = HERE.with_name("tkp_pcl.md"), HERE.with_suffix(".json")
START, END = "<!-- sweep -->\n", "<!-- /sweep -->"
SEED, IMAGES = 3, 128
VALUES = {  # of the preset's `config`; the first is the preset's own
    "k": (6, 1, 3, 12, 24),
    "weight": (0.1, 0.0, 0.05, 0.2),
    "threshold": (0.95, 0.8, 0.9),
    "form": ("linear", "log"),
    "mean_steps": (30, 0),
}


def variants() -> dict[str, dict]:
    """What is trained: the preset, and each other value alone, by name."""
    others = {f"{name}={value}": {name: value} for name, values in VALUES.items() for value in values[1:]}
    return {"preset": {}} | others


def measured(run: Path) -> dict[str, float]:
    """mIoU on the first images of the validation split, of the patches' classes as they are and refined by PAR."""
    opened = Run.open(run)
    recipe = Recipe(opened.config["settings"], opened.config["classes"])
    module = recipe.build()
    module.load_state_dict(newest(run / "checkpoints")["module"])
    predictor = Predictor(recipe, module, torch.device("cpu"))
    results = predictor.evaluate(Shapes("val"), Settings("par", None, None), range(IMAGES), show_progress=False)
    return {name: round(result.miou(), 4) for name, result in results.items()}


def sweep(out: Path, steps: int | None) -> dict[str, dict[str, float]]:
    """Train what is missing; the numbers of every variant."""
    rows = {}
    for name, changes in variants().items():
        settings = Recipe.preset("shapes", **({} if steps is None else {"steps": steps}))
        settings["config"] = settings["config"] | changes
        run = out / name
        if not (run / "metrics.json").exists():
            train(Job(run, "tkp-pcl", settings, seed=SEED, evaluate_images=(1, 1), device="cpu"), resume=True)
        rows[name] = measured(run)
        print(name, rows[name], flush=True)
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """A line for each value, in percent."""
    lines = ["| option | value | classes of patches | refined by PAR |", "|---|---|---|---|"]
    for name, values in VALUES.items():
        for value in values:
            key = "preset" if value == values[0] else f"{name}={value}"
            scores = " | ".join(f"{100 * rows[key][quantity]:.1f}" for quantity in ("cam", "pseudo_label"))
            note = " (max pooling)" if (name, value) == ("k", 1) else ""
            lines.append(f"| `{name}` | {value}{' †' if value == values[0] else note} | {scores} |")
    return "".join(f"{line}\n" for line in lines)


def main() -> None:
    """Train, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tkp_pcl_sweep"), help="for the runs")
    parser.add_argument("--steps", type=int, help="fewer than the preset's, to try it; nothing is written then")
    parser.add_argument("--table", action="store_true", help="write the table alone")
    args = parser.parse_args()
    if not args.table:
        rows = sweep(args.out, args.steps)
        if args.steps is not None:
            return
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    content = START + table(json.loads(RESULTS.read_text())) + END
    TUTORIAL.write_text(re.sub(f"{START}.*?{END}", lambda _: content, TUTORIAL.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
