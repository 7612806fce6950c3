"""Both stages on the shapes, by the commands: PPC from nothing, its seeds, AffinityNet on them. Three seeds.

    python docs/affinitynet_study.py [--out DIR] [--quick]    # trains; writes docs/affinitynet_study.json and the table

It goes on where it stopped. "two sets" are labels that two exponents agree on, "one set" those of one exponent, which
leaves no pixel open, as the published loop over exponents does by mistake; all else is equal. The numbers are of the
test split; the background's score in the walk was kept after a look at the validation split, with seed 0.
"""

import argparse
import json
import re
from pathlib import Path

from toco_kernels.__main__ import main as command
from toco_kernels.training import seeds
from toco_kernels.training.files import write_mask
from toco_kernels.training.miou import Confusion
from toco_kernels.training.refine import Settings, pseudo_label
from toco_kernels.training.shapes import Shapes

HERE = Path(__file__).parent
PAGE, RESULTS = HERE / "affinitynet.md", HERE / "affinitynet_study.json"
START, END = "<!-- study -->\n", "<!-- /study -->"
REFINEMENT, TWO, ONE = "affinitynet", (0.4, 4.0), (1.0, 1.0)
COLUMNS = {
    "seeds": "seed_miou",
    "seeds, PAR": "seed_par_miou",
    "walked": "cam_miou",
    "walked, PAR": "pseudo_label_miou",
}


def run(*words: object) -> None:
    """One of the commands."""
    assert command([str(word) for word in words]) == 0, words


def train(out: Path, *words: object) -> dict:
    """Train, or take what was trained; returns metrics.json."""
    if not (out / "metrics.json").exists():
        run("train", "--out", out, "--resume", "--checkpoint-every", 20, "--picture-every", 0, *words)
    return json.loads((out / "metrics.json").read_text())


def relabel(source: Path, target: Path, data: Shapes, alphas: tuple[float, float]) -> None:
    """The same class maps, and labels of other exponents."""
    target.mkdir(exist_ok=True)
    for file in source.glob("*.npz"):
        if not (target / file.name).exists():
            (target / file.name).hardlink_to(file)
    settings = Settings(REFINEMENT, None, None, alphas=alphas)
    for index, name in enumerate(data.names):
        if seeds.maps_file(source, name).exists() and not seeds.label_file(target, name).exists():
            image = data.image(index)
            label = pseudo_label(image, seeds.of(source, data, index, image), data.labels(index), settings)
            write_mask(seeds.label_file(target, name), label)


def refined_miou(folder: Path, data: Shapes) -> float:
    """Of the class maps, refined by PAR without a second network."""
    counted, settings = Confusion(len(data.classes)), Settings("par", 0.5, 0.5)
    for index, name in enumerate(data.names):
        if seeds.maps_file(folder, name).exists():
            image = data.image(index)
            label = pseudo_label(image, seeds.of(folder, data, index, image), data.labels(index), settings)
            counted.update(data.mask(index), label)
    return counted.miou()


def study(out: Path, quick: bool) -> list[dict]:
    """Train what is missing; returns a row for each run."""
    images, steps = (8, ["--steps", 2]) if quick else (256, [])
    rows = []
    for variant in ("two sets", "one set"):
        for seed in range(1 if quick else 3):
            first, two, one = out / f"ppc-{seed}", out / f"two-{seed}", out / f"one-{seed}"
            common = ["--seed", seed, "--evaluate-images", images, *steps]
            train(first, "--method", "ppc", *common)
            alphas = ",".join(map(str, TWO))
            labels = ["--split", "train,test", "--images", images, "--alphas", alphas, "--refine", REFINEMENT]
            run("pseudo-label", "--run", first, "--out", two, "--keep-maps", *labels)
            relabel(two, one, Shapes("train"), ONE)
            folder = two if variant == "two sets" else one
            metrics = train(out / f"net-{folder.name}", "--method", "affinitynet", "--seeds", folder, *common)
            numbers = metrics | {"seed_par_miou": refined_miou(folder, Shapes("test"))}
            row = {"variant": variant, "seed": seed, "steps": metrics["steps"], "images": metrics["images"]}
            rows.append(row | {name: round(numbers[name], 4) for name in COLUMNS.values()})
            print(rows[-1], flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """In percent: the mean, and each seed."""
    lines = [f"| mIoU, % | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        chosen = [row for row in rows if row["variant"] == variant]
        cells = []
        for name in COLUMNS.values():
            values = [100 * row[name] for row in chosen]
            cells.append(f"{sum(values) / len(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def main() -> None:
    """Train, and write what came out of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("affinitynet_study"), help="for the runs")
    parser.add_argument("--quick", action="store_true", help="a few steps and images, to try it; nothing is written")
    args = parser.parse_args()
    rows = study(args.out, args.quick)
    if args.quick:
        print(table(rows))
        return
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(re.sub(f"{START}.*?{END}", lambda _: START + table(rows) + END, PAGE.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
