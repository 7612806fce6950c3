"""`python -m toco_kernels memory`: what a training step takes, published and fused, and what fits your GPU."""

import argparse
import json
import re
import sys
from pathlib import Path

from . import failing, format_table, import_extra, positive_int

NAMES = {"published": "published", "toco_kernels": "fused"}
METHODS = ("toco", "ppc", "ppc-eps", "tkp-pcl")
INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments. The defaults are COCO's sizes."""
    parser.description += (
        " A step is verified first: fused and published must have the same losses and gradients. Each case then runs "
        "in a process of its own; one that runs out of memory is a result. On a GPU the allocator's peaks are "
        "measured, on a CPU those of the resident size, where full sizes take long: try --crops 224,448 --batch 1 "
        "--backbone deit_tiny_patch16_224, or resnet10t for ppc."
    )
    parser.add_argument(
        "--method",
        default="toco",
        choices=METHODS,
        help="whose step: ppc is on SEAM, ppc-eps on EPS (default: %(default)s)",
    )
    parser.add_argument(
        "--crops",
        type=crops,
        default="448,640,768,1024",
        metavar="N,…",
        help="sides of images in pixels, multiples of 16 from 112 on (default: %(default)s)",
    )
    parser.add_argument("--batch", type=positive_int, default=4, metavar="N", help="images of a step (default: 4)")
    parser.add_argument(
        "--classes", type=positive_int, default=80, metavar="N", help="without background (default: 80, COCO's)"
    )
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="one of timm's ViTs, for PPC one with features of stride 8 (default: deit_base_patch16_224, of ppc and "
        "ppc-eps resnet50, of tkp-pcl vit_base_patch16_384)",
    )
    parser.add_argument(
        "--budget", type=megabytes, metavar="SIZE", help="find the largest crop and batch for this much, as 24GB"
    )
    parser.add_argument("--no-check", action="store_true", help="do not measure what is predicted to fit the budget")
    parser.add_argument(
        "--cases",
        type=Path,
        metavar="FILE",
        help="keep every case in this file as soon as it is measured, and measure no case that is there already: the "
        "same command goes on where it was interrupted",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--plot", type=picture, metavar="FILE", help="draw the peaks (.png, .svg or .pdf); needs matplotlib"
    )


def crops(text: str) -> list[int]:
    """An argparse type: sides of images, in ascending order."""
    found = sorted({int(part) for part in text.split(",") if part.isdigit()})
    if not found or len(found) != len(text.split(",")) or any(crop % 16 or crop < 112 for crop in found):
        raise argparse.ArgumentTypeError(f"must be different multiples of 16 from 112 on, as 448,640, got {text!r}")
    return found


def megabytes(text: str) -> float:
    """An argparse type: MB of a size in MB or GB (powers of 1000), or in MiB or GiB (of 1024)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG])(i?)B", text, re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"must be a size as 24GB, 24GiB or 800MB, got {text!r}")
    unit = 1024 if match[3] else 1000
    return float(match[1]) * unit ** (3 if match[2].upper() == "G" else 2) / 1e6


def picture(text: str) -> Path:
    """An argparse type: a file that a picture can be written to, so that nothing is measured in vain."""
    file = Path(text)
    if file.suffix not in (".png", ".svg", ".pdf") or not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be FILE.png, .svg or .pdf in a folder that exists, got {text!r}")
    return file


def run(args: argparse.Namespace) -> int:
    """Measure, and print a table; of what there is, where it is interrupted."""
    import_extra("pytest", "bench")
    import_extra("timm", "train")
    if args.plot:
        import_extra("matplotlib", "plot")
    from ..memory.measured import Measurement, Plan

    check, code = not args.no_check, 0
    plan = Plan(args.method, args.crops, args.batch, args.classes, args.backbone, args.budget, check, args.cases)
    with failing():
        measurement = Measurement(plan)
        try:
            measurement.run()
        except KeyboardInterrupt:
            kept = f"the same command goes on: {args.cases} keeps" if args.cases else "--cases FILE would have kept"
            print(f"interrupted; {kept} what was measured", file=sys.stderr)
            code = INTERRUPTED
    found = measurement.found
    print(json.dumps(found, indent=2) if args.json else as_text(found))
    if args.plot:
        from ..memory.plot import draw

        draw(found, args.plot)
    return code


def as_text(found: dict) -> str:
    """The report for people."""
    sizes = f"{found['batch']} images, {found['classes']} classes, {found['backbone']}"
    parts = [f"peak memory of {found['method']} on {found['device']}, MB: {sizes}"]
    if found["verified"]:
        worst = max(found["verified"].values())
        parts.append(f"verified: losses and gradients of fused and published differ by {worst:.1g} at most")
    parts += ["", _table(found)]
    if found["places"]:
        parts += ["", "what sets the peak of a step", _places(found["places"])]
    if "largest" in found:
        parts += ["", f"what fits {found['budget_mb']:g} MB", _largest(found["largest"])]
    return "\n".join(parts)


def _places(places: list[dict]) -> str:
    rows = [("", "case", "operator", "module", "phase", "MB in use there, parameters aside")]
    for place in places:
        name = NAMES[place["provider"]]
        if place["failure"]:
            rows.append((name, "", place["failure"], "", "", ""))
            continue
        held = ", ".join(f"{row['operator']} {row['mb']:.0f}" for row in place["held"])
        case, module = f"{place['batch']} x {place['crop']}", place["module"] or "the step itself"
        rows.append((name, case, place["operator"], module, place["phase"], f"{place['mb']:.0f}: {held}"))
    return format_table(rows)


def _table(found: dict) -> str:
    rows = [("what", "crop", "batch", "published", "fused", "ratio")]
    cells: dict[tuple, dict] = {}
    for row in (*found["operators"], *found["steps"]):
        cells.setdefault((row["operator"], row["crop"], row["batch"]), {})[row["provider"]] = row
    for (what, crop, batch), row in cells.items():
        published, fused = (row.get(provider) for provider in NAMES)
        both = published and fused and published["mb"] and fused["mb"]
        ratio = f"{published['mb'] / fused['mb']:.2f}" if both else ""
        rows.append((what, str(crop), str(batch), *map(_peak, (published, fused)), ratio))
    return format_table(rows)


def _peak(row: dict | None) -> str:
    if row is None:
        return ""
    return row["failure"] or megabytes_of(row["mb"])


def megabytes_of(mb: float) -> str:
    """Whole ones, or three digits of few."""
    return f"{mb:.0f}" if mb >= 100 else f"{mb:.3g}"


def _largest(rows: list[dict]) -> str:
    answers: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        given = f"batch {row['batch']}" if row["wanted"] == "crop" else f"crop {row['crop']}"
        what = f"{row[row['wanted']]} ({megabytes_of(row['mb'])} MB, {row['how']})" if row["mb"] else row["how"]
        answers.setdefault((f"largest {row['wanted']}", given), {})[row["provider"]] = what
    table = [("wanted", "given", *NAMES.values())]
    return format_table([*table, *((*what, *(row.get(name, "") for name in NAMES)) for what, row in answers.items())])
