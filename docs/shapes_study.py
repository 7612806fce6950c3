"""With and without a method's contrast terms, from nothing on the shapes: three seeds each, and the README's table.

    python docs/shapes_study.py --method toco [--out DIR] [--steps N]   # trains; writes docs/shapes_study_toco.json
    python docs/shapes_study.py --table                                 # writes the table of all methods into README.md

It goes on where it stopped: what is in DIR, or in the file of numbers, is not trained again (delete the file for that),
and `--table` trains nothing. A variant is the preset `shapes` with nothing changed but what VARIANTS says. The numbers
are of the test split, which nothing was chosen by: the threshold and all else are the preset's.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

from toco_kernels.training.loop import train
from toco_kernels.training.recipes import find
from toco_kernels.training.trainer import Job

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
START, END = "<!-- shapes study -->\n", "<!-- /shapes study -->"
NUMBERS = ("cam_miou", "pseudo_label_miou", "seg_miou")
SEEDS = (0, 1, 2)


def as_preset(values: dict) -> dict:
    """Nothing changed."""
    return values


def without_losses(*losses: str) -> Callable[[dict], dict]:
    """No weight for these losses in any stage of `config`."""

    def change(values: dict) -> dict:
        stages = [
            {**stage, "weights": {name: w for name, w in stage["weights"].items() if name not in losses}}
            for stage in values["config"]["stages"]
        ]
        return values | {"config": values["config"] | {"stages": stages}}

    return change


def without_weights(*losses: str) -> Callable[[dict], dict]:
    """No weight for these losses in `config`, which has no stages."""

    def change(values: dict) -> dict:
        weights = {name: w for name, w in values["config"]["weights"].items() if name not in losses}
        return values | {"config": values["config"] | {"weights": weights}}

    return change


def configured(**changes: object) -> Callable[[dict], dict]:
    """These values of `config`."""
    return lambda values: values | {"config": values["config"] | changes}


# method -> variant -> from the settings of its preset to those of the variant
VARIANTS: dict[str, dict[str, Callable[[dict], dict]]] = {
    "toco": {"with": as_preset, "without": without_losses("ptc", "ctc")},
    "ppc": {"with": as_preset, "without": without_weights("cross_prototype", "cross_cam", "intra")},
    "tkp-pcl": {"with": as_preset, "without": configured(weight=0.0)},
}


def settings(method: str, variant: str, steps: int | None = None) -> dict:
    """What is trained."""
    preset = find(method).preset("shapes", **({} if steps is None else {"steps": steps}))
    return VARIANTS[method][variant](preset)


def result_file(method: str) -> Path:
    """Where a method's numbers are."""
    return Path(__file__).with_name(f"shapes_study_{method}.json")


def study(method: str, out: Path, steps: int | None) -> None:
    """Train what is missing, and write a row for each run; of fewer steps than the preset's they are only printed."""
    file, rows = result_file(method), {}
    if steps is None and file.exists():
        rows = {(row["variant"], row["seed"]): row for row in json.loads(file.read_text())}
    for seed in SEEDS:
        for variant in VARIANTS[method]:
            run, values = out / f"{method}-{variant}-{seed}", settings(method, variant, steps)
            if (run / "metrics.json").exists() or (variant, seed) not in rows:
                rows[variant, seed] = _row(method, variant, seed, run, values)
            print(rows[variant, seed], flush=True)
            if steps is None:
                file.write_text(json.dumps([*rows.values()], indent=1) + "\n")


def _row(method: str, variant: str, seed: int, run: Path, values: dict) -> dict:
    """The numbers of a run, which is trained unless it is there."""
    if not (run / "metrics.json").exists():
        train(Job(run, method, values, seed=seed, checkpoint_every=10), resume=True)
    metrics = json.loads((run / "metrics.json").read_text())
    row = {"variant": variant, "seed": seed, "steps": metrics["steps"], "images": metrics["images"]}
    return row | {name: None if metrics[name] is None else round(metrics[name], 4) for name in NUMBERS}


def table() -> str:
    """Of all methods that have been studied, in percent: a line for each variant, its seeds and their mean."""
    lines = ["| mIoU, % | contrast terms | raw CAM | refined by PAR | segmentation |", "|---|---|---|---|---|"]
    for method, variants in VARIANTS.items():
        if not result_file(method).exists():
            continue
        rows = json.loads(result_file(method).read_text())
        for variant in variants:
            chosen = [row for row in rows if row["variant"] == variant]
            cells = (_cell([row[name] for row in chosen]) for name in NUMBERS)
            lines.append(f"| {method} | {variant} | {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def _cell(values: list[float | None]) -> str:
    """The mean, and what it is of."""
    if None in values:
        return "—"
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"{100 * sum(values) / len(values):.1f} ({each})"


def write_table() -> None:
    """Into the README, between its markers."""
    content = START + table() + END
    README.write_text(re.sub(f"{START}.*?{END}", lambda _: content, README.read_text(), flags=re.DOTALL))


def main() -> None:
    """Train what was not measured, or write the table of what was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=VARIANTS, help="train all variants of this one")
    parser.add_argument("--out", type=Path, default=Path("shapes_study"), help="for the runs")
    parser.add_argument("--steps", type=int, help="fewer than the preset's, to try it")
    parser.add_argument("--table", action="store_true", help="write the README's table")
    args = parser.parse_args()
    if bool(args.method) == args.table:
        parser.error("needs --method or --table, not both: the table trains nothing")
    if args.table:
        write_table()
    else:
        study(args.method, args.out, args.steps)


if __name__ == "__main__":
    main()
