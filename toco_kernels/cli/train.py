"""`python -m toco_kernels train`: a method on a data set, from the beginning or from where it stopped."""

import argparse
import json
from pathlib import Path
from typing import Any

from . import failing, import_extra, natural_int, positive_int

METHODS = ("toco", "ppc", "tkp-pcl", "affinitynet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_method_arguments(parser, "--seeds", "--seed-maps")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the folder to write to")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    parser.add_argument("--workers", type=natural_int, default=0, metavar="N", help="processes that load data")
    for name, default, what in (
        ("log", 10, "write losses"),
        ("picture", 200, "draw a picture, the last step's too,"),
        ("evaluate", 0, "measure a few validation images"),
        ("checkpoint", 100, "write a checkpoint"),
    ):
        text = f"{what} every so many steps, 0: never (default: %(default)s)"
        parser.add_argument(f"--{name}-every", type=natural_int, default=default, metavar="N", help=text)
    parser.add_argument(
        "--evaluate-images",
        type=positive_int,
        metavar="N",
        help="measure at most that many images at the end (default: all)",
    )


def add_method_arguments(parser: argparse.ArgumentParser, *seed_maps: str) -> None:
    """What is trained on what: arguments that `certify` has too, where --seeds are numbers and not `seed_maps`."""
    parser.add_argument(
        "--method", default="toco", help=f"{', '.join(METHODS)}, or a Python file (default: %(default)s)"
    )
    parser.add_argument(
        "--data",
        default="shapes",
        choices=["shapes", "voc", "coco", "folder"],
        help="shapes: generated, five classes, no download; voc: VOC2012 with train_aug; coco: COCO 2014; folder: "
        "anything in VOC's layout (default: %(default)s)",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="where the data set is; ROOT/SALImages/NAME.png: saliency maps (PPC on EPS)",
    )
    parser.add_argument("--sbd", type=Path, metavar="DIR", help="SBD with train.txt and val.txt, for VOC's train_aug")
    parser.add_argument(
        "--labels",
        default="auto",
        metavar="SOURCE",
        help="image labels: labels.json, xml, masks, or a file like labels.json (default: the first that is there)",
    )
    parser.add_argument(
        *seed_maps,
        dest="seed_maps",
        type=Path,
        metavar="DIR",
        help="what another method found, for affinitynet: labels and class maps by pseudo-label --keep-maps",
    )
    parser.add_argument("--preset", metavar="P", help="settings of the method (default: that of the data)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=assignment,
        metavar="NAME=VALUE",
        dest="changes",
        help="change a setting of the preset, as JSON: --set lr=1e-4 --set config.high=0.6; again for more",
    )
    parser.add_argument("--steps", type=positive_int, metavar="N", help="how many (default: the preset's)")
    parser.add_argument("--batch-size", type=positive_int, metavar="N", help="images, of all processes together")
    parser.add_argument("--seed", type=natural_int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        help="of matrix products (default: %(default)s)",
    )
    parser.add_argument("--device", metavar="D", help="cpu or cuda (default: a GPU where there is one)")


def run(args: argparse.Namespace) -> int:
    """Train."""
    loop = import_extra("toco_kernels.training.loop", "train")
    with failing():
        metrics = loop.train(job_of(args, run=args.out), resume=args.resume)
    for name in ("seed_miou", "cam_miou", "pseudo_label_miou", "seg_miou"):
        if metrics.get(name) is not None:
            print(f"{name:18} {100 * metrics[name]:.2f}   ({metrics['split']}, {metrics['images']} images)")
    return 0


def job_of(args: argparse.Namespace, run: Path) -> Any:
    """What to train, by the arguments."""
    trainer = import_extra("toco_kernels.training.trainer", "train")
    recipe = import_extra("toco_kernels.training.recipes", "train").find(args.method)
    preset = args.preset or (args.data if args.data in recipe.presets else "voc")
    settings = recipe.preset(preset)
    for name, value in [("steps", args.steps), ("batch_size", args.batch_size), *args.changes]:
        if value is not None:
            settings = changed(settings, name, value)
    only_train = ("workers", "log_every", "picture_every", "evaluate_every", "checkpoint_every")
    return trainer.Job(
        run,
        args.method,
        settings,
        seeds=args.seed_maps,
        **{name: getattr(args, name) for name in ("data", "root", "sbd", "labels", "seed", "precision", "device")},
        **{name: getattr(args, name) for name in only_train if hasattr(args, name)},
        **({"evaluate_images": (32, args.evaluate_images)} if hasattr(args, "evaluate_images") else {}),
    )


def changed(settings: dict, name: str, value: object) -> dict:
    """The settings with one changed; dots lead into nested ones."""
    key, _, rest = name.partition(".")
    if key not in settings:
        raise ValueError(f"--set: there is no setting {key!r}; there are {', '.join(sorted(settings))}")
    return settings | {key: changed(settings[key], rest, value) if rest else value}


def assignment(text: str) -> tuple[str, object]:
    """An argparse type: NAME=VALUE, the value as JSON, or as text where it is none."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
