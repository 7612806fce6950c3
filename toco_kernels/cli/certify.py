"""`python -m toco_kernels certify`: does the fast path change training? Measured on your data."""

import argparse
from pathlib import Path

from . import failing, format_table, import_extra, positive_int
from .train import add_method_arguments, job_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_method_arguments(parser, "--seed-maps")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="for certify.json and certify.svg")
    parser.add_argument("--certify-steps", type=positive_int, default=30, metavar="N", help="steps (default: 30)")
    parser.add_argument("--seeds", type=positive_int, default=3, metavar="N", help="how many seeds (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Train three times, side by side; the exit code is 1 where ours drifts too far."""
    certify = import_extra("toco_kernels.training.certify", "train")
    with failing():
        job = job_of(args, args.out)
        seeds = range(args.seed, args.seed + args.seeds)
        certificate = certify.certify(job, steps=args.certify_steps, seeds=seeds)
        certificate.write(args.out)
    rows = [("", "ours", "nudged", "ratio")]
    for name, ratio in certificate.ratios.items():
        ends = (f"{curves[name][:, -1].mean():.1e}" for curves in (certificate.ours, certificate.nudged))
        rows.append((name, *ends, f"{ratio:.2f}"))
    print(f"relative distance from the published training after {args.certify_steps} steps, {args.seeds} seeds")
    print(format_table(rows))
    verdict = "passed" if certificate.passed else "FAILED: this does not train as published"
    print(f"{verdict}; ratios are over all steps, and may be {certify.LIMIT:g} at most ({args.out / 'certify.svg'})")
    return 0 if certificate.passed else 1
