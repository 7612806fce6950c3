"""`python -m toco_kernels demo`: photographs through the published code and through toco_kernels, side by side.

Every section prints one table and returns what is wrong with it. The picture is written when nothing is.
"""

import argparse
import os
from pathlib import Path

import torch

from .. import import_extra, positive_int
from . import pictures
from .class_contrast import contrast
from .compare import device
from .patch_contrast import contrast_patches
from .refinement import coarse_scene, refine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--image", type=pictures.read_photograph, metavar="FILE", help="your picture (default: four photographs)"
    )
    parser.add_argument(
        "--mask",
        type=pictures.read_mask,
        metavar="FILE",
        help="the classes in your picture, a palette or grey image of class indices, 255 ignored (default: k-means)",
    )
    parser.add_argument(
        "--out",
        type=writable_file,
        default="demo.png",
        metavar="FILE",
        help="where to write photographs, coarse class maps and refined labels as PNG (default: %(default)s)",
    )
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: what torch takes)")
    parser.set_defaults(error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Run every section; the exit code is 1, and no picture written, if one of them computed something wrong."""
    if not __debug__:
        raise SystemExit("demo verifies by assertions, which python -O removes: run it without -O")
    if args.mask is not None and args.image is None:
        args.error("argument --mask: needs --image FILE, the picture whose classes it holds")
    for package in ("PIL.Image", "skimage", "timm"):  # now, not after a minute
        import_extra(package, "demo")
    if args.threads:
        torch.set_num_threads(args.threads)
    photographs = [args.image] if args.image else pictures.shipped_photographs()
    name = torch.cuda.get_device_name() if device() == "cuda" else "CPU"
    print("photographs ", ", ".join(photograph.name for photograph in photographs))
    print(f"device       {name}, {torch.get_num_threads()} threads\n")

    scenes = [coarse_scene(photograph, args.mask) for photograph in photographs]
    refined, wrong = refine(scenes, "k-means of colour and position" if args.mask is None else "the mask")
    print()
    wrong += contrast(photographs)
    print()
    wrong += contrast_patches(photographs)
    if wrong:
        print("\nWRONG, do not train with this: the published code computes something else.", *wrong, sep="\n  ")
        print("Please report it, with the output of `python -m toco_kernels doctor --json`. No picture was written.")
        return 1
    rows = [
        pictures.row(scene.name, scene.pixels, scene.labels, scene.labels_of(scene.maps), labels)
        for scene, labels in zip(scenes, refined, strict=True)
    ]
    pictures.write(pictures.stack(rows), args.out)
    print(f"\npicture      {args.out.absolute()}")
    return 0


def writable_file(path: str) -> Path:
    """An argparse type: where a file can be written."""
    file = Path(path)
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"must be a file in a folder that you can write to, got {path!r}")
    return file
