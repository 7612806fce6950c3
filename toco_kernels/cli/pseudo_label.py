"""`python -m toco_kernels pseudo-label`: a label for every photograph, by a network that `train` trained."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import failing, import_extra, natural_int, positive_int

if TYPE_CHECKING:
    from ..training.refine import Settings

REFINEMENTS = ("none", "par", "toco-test", "label-crf", "vit-pcm", "affinitynet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="what train wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where NAME.png go; it may be resumed")
    parser.add_argument(
        "--split", help="of the data that it was trained on, or several: train,val (default: the first)"
    )
    parser.add_argument("--images", type=positive_int, metavar="N", help="of each split, evenly spaced (default: all)")
    parser.add_argument(
        "--keep-maps", action="store_true", help="write NAME.npz too, its class maps: train --seeds DIR"
    )
    parser.add_argument(
        "--seeds", type=Path, metavar="DIR", help="class maps for affinitynet (default: as in training)"
    )
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
        "67/3/4; affinitynet 3/3, 80/13/10, from hard labels), or none (default: %(default)s)",
    )
    parser.add_argument("--high", type=float, metavar="T", help="background's score (default: that of its settings)")
    parser.add_argument("--low", type=float, metavar="T", help="below --high: pixels in between stay open, 255")
    parser.add_argument(
        "--alphas",
        type=scales,
        metavar="LOW,HIGH",
        help="in place of both: the background's score is (1 - the largest CAM) to these powers, and pixels that only "
        "one calls an object stay open: labels for affinitynet",
    )
    parser.add_argument("--size", type=natural_int, metavar="N", help="squash photographs to N x N for the network")
    parser.add_argument("--workers", type=natural_int, default=0, metavar="N", help="processes that refine and write")
    parser.add_argument("--device", metavar="D", help="cpu or cuda (default: a GPU where there is one)")


def run(args: argparse.Namespace) -> int:
    """Write the labels; the exit code is 1 where some photograph had to be left out."""
    runs = import_extra("toco_kernels.training.runs", "train")
    pseudo_labels = import_extra("toco_kernels.training.pseudo_labels", "train")
    from ..common.errors import bad_value
    from ..training.data import SPLITS, spread
    from ..training.processes import Processes

    with failing():
        opened = runs.Run.open(args.run)
        processes = Processes.join(args.device)
        changes = {"cam_scales": args.scales} if args.scales else {}
        predictor = opened.predictor(processes, size=args.size or None, changes=changes)
        split = args.split or SPLITS[opened.config["data"]][0]
        parts = [opened.data(part) for part in split.split(",")]
        seeds_of = args.seeds or opened.seeds
        if args.seeds is not None and opened.seeds is None:
            raise ValueError(f"--seeds: method {opened.config['method']} makes its class maps of photographs alone")
        settings = settings_of(args, opened.background())
        if args.source == "seg" and "seg" not in predictor.quantities():
            raise bad_value("--source", f"be cam: method {opened.config['method']} has no segmentation", args.source)
        made_with = {"split": split, "size": args.size, "scales": args.scales, "step": opened.state["step"]}
        made_with["weights_sha256"] = runs.checkpoints.hash_of(predictor.module)
        made_with |= {"keep_maps": True} if args.keep_maps else {}
        made_with |= {"seeds": str(seeds_of)} if seeds_of else {}

        def maps_of(image, labels, *found):
            if args.source == "cam":
                return predictor.cams(image, labels, *found)["cam"]
            return predictor.segmentation(image, args.scales or (1.0,), "sum" if args.scales else None)

        if processes.first:
            pseudo_labels.claim(args.out, settings.as_dict() | made_with)
        processes.wait()
        written, kept, skipped = 0, 0, []
        for data in parts:
            report = pseudo_labels.make(
                data,
                maps_of,
                args.out,
                settings,
                made_with=made_with,
                workers=args.workers,
                indices=spread(len(data), args.images)[processes.rank :: processes.world],
                show_progress=processes.first,
                keep_maps=args.keep_maps,
                seeds_of=seeds_of,
            )
            written, kept, skipped = written + report.written, kept + report.kept, skipped + report.skipped
        processes.wait()
        processes.leave()
    print(f"{written} labels written, {kept} were there, {len(skipped)} photographs left out")
    for problem in skipped:
        print(f"  {problem}", file=sys.stderr)
    return 1 if skipped else 0


def settings_of(args: argparse.Namespace, background: float | None) -> "Settings":
    """How labels are made, by the arguments; `background` is that of the run's settings."""
    from ..training.refine import Settings

    thresholds = args.high is not None or args.low is not None
    if args.source == "cam" and background is None and (thresholds or args.alphas):
        raise ValueError("--high, --low and --alphas: the class maps of this run have a background of their own")
    if args.source != "cam" and (args.alphas or args.keep_maps):
        raise ValueError("--alphas and --keep-maps are for CAMs, not for --source seg")
    if args.alphas:
        if thresholds or len(args.alphas) != 2:
            raise ValueError("--alphas must be two numbers, LOW,HIGH, without --high and --low")
        return Settings(args.refine, None, None, args.source, alphas=tuple(args.alphas))
    high = background if args.high is None else args.high
    return Settings(args.refine, high, high if args.low is None else args.low, args.source)


def scales(text: str) -> list[float]:
    """An argparse type: positive numbers, separated by commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) <= 0:
        raise argparse.ArgumentTypeError(f"must be positive numbers separated by commas, got {text!r}")
    return values
