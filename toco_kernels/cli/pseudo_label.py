"""`python -m toco_kernels pseudo-label`: a label for every photograph, by a network that `train` trained."""

import argparse
import sys
from pathlib import Path

from . import failing, import_extra, natural_int

REFINEMENTS = ("none", "par", "toco-test", "label-crf", "vit-pcm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="what train wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where NAME.png go; it may be resumed")
    parser.add_argument("--split", help="of the data that it was trained on (default: what it was trained on)")
    parser.add_argument("--source", default="cam", choices=["cam", "seg"], help="CAMs or segmentation (default: cam)")
    parser.add_argument(
        "--scales",
        type=scales,
        metavar="S,S,…",
        help="sizes at which the network looks, each with its mirror image (default: those of its settings)",
    )
    parser.add_argument(
        "--refine",
        default="par",
        choices=REFINEMENTS,
        help="PAR, a dense CRF (toco-test 1/1, 121/5/4; label-crf 3/3, 50/5/10, from hard labels; vit-pcm 1/3, "
        "67/3/4), or none (default: %(default)s)",
    )
    parser.add_argument("--high", type=float, metavar="T", help="background's score (default: that of its settings)")
    parser.add_argument("--low", type=float, metavar="T", help="below --high: pixels in between stay open, 255")
    parser.add_argument("--size", type=natural_int, metavar="N", help="squash photographs to N x N for the network")
    parser.add_argument("--workers", type=natural_int, default=0, metavar="N", help="processes that refine and write")
    parser.add_argument("--device", metavar="D", help="cpu or cuda (default: a GPU where there is one)")


def run(args: argparse.Namespace) -> int:
    """Write the labels; the exit code is 1 where some photograph had to be left out."""
    runs = import_extra("toco_kernels.training.runs", "train")
    pseudo_labels = import_extra("toco_kernels.training.pseudo_labels", "train")
    from ..common.errors import bad_value
    from ..training.data import SPLITS
    from ..training.processes import Processes
    from ..training.refine import Settings

    with failing():
        opened = runs.Run.open(args.run)
        processes = Processes.join(args.device)
        changes = {"cam_scales": args.scales} if args.scales else {}
        predictor = opened.predictor(processes, size=args.size or None, changes=changes)
        if args.source == "seg" and "seg" not in predictor.quantities():
            raise bad_value("--source", f"be cam: method {opened.config['method']} has no segmentation", args.source)
        split = args.split or SPLITS[opened.config["data"]][0]
        data = opened.data(split)
        high = opened.background() if args.high is None else args.high
        if args.source == "cam" and opened.background() is None and (args.high, args.low) != (None, None):
            raise ValueError("--high and --low: the class maps of this run have a background of their own")
        settings = Settings(args.refine, high, high if args.low is None else args.low, args.source)
        made_with = {"split": split, "size": args.size, "scales": args.scales, "step": opened.state["step"]}
        made_with["weights_sha256"] = runs.checkpoints.hash_of(predictor.module)

        def maps_of(image, labels):
            if args.source == "cam":
                return predictor.cams(image, labels)["cam"]
            return predictor.segmentation(image, args.scales or (1.0,), "sum" if args.scales else None)

        if processes.first:
            pseudo_labels.claim(args.out, settings.as_dict() | made_with)
        processes.wait()
        report = pseudo_labels.make(
            data,
            maps_of,
            args.out,
            settings,
            made_with=made_with,
            workers=args.workers,
            indices=range(processes.rank, len(data), processes.world),
            show_progress=processes.first,
        )
        processes.wait()
        processes.leave()
    print(f"{report.written} labels written, {report.kept} were there, {len(report.skipped)} photographs left out")
    for problem in report.skipped:
        print(f"  {problem}", file=sys.stderr)
    return 1 if report.skipped else 0


def scales(text: str) -> list[float]:
    """An argparse type: positive numbers, separated by commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) <= 0:
        raise argparse.ArgumentTypeError(f"must be positive numbers separated by commas, got {text!r}")
    return values
