"""The commands of `python -m toco_kernels`, one module each, and what they share.

A command's module has `add_arguments(parser)` and `run(args)`, which returns the exit code.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

COMMANDS = {  # name -> what `--help` says about it
    "doctor": "Show which implementation of each operator answers on this machine, and why.",
    "demo": "Run real photographs through the published code and through toco_kernels, side by side.",
    "bench": "Measure what this machine gains: each operator verified, and timed beside its rivals.",
    "memory": "Measure what a training step takes, published and fused, and find what fits a budget.",
    "train": "Train a method, by default on generated images with nothing to download.",
    "pseudo-label": "Write a pseudo label for every photograph, by a trained network.",
    "evaluate": "Measure the mean IoU of a network or of a folder of labels, by published protocols.",
    "certify": "Show on your data that the fast path trains as the published one does.",
    "port": "Print a diff that puts this package into a repository; --write applies it.",
    "run": "Run a script with its published functions replaced while it is imported; nothing is written.",
}


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart. A header is a row like any other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def positive_int(text: str) -> int:
    """An argparse type."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return value


def natural_int(text: str) -> int:
    """An argparse type."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return value


@contextmanager
def failing() -> Iterator[None]:
    """Errors that tell the user what to do end the command with one line; others are bugs, and keep their traceback."""
    try:
        yield
    except (ValueError, ArithmeticError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error


def known_variants(path: str) -> dict[str, str]:
    """An argparse type: a JSON file {fingerprint: name of ours}, of variants that somebody has compared."""
    from ..port import registry

    try:
        names = dict(json.loads(Path(path).read_text()).items())
    except (OSError, ValueError, AttributeError):
        raise argparse.ArgumentTypeError(f"must be a file of JSON {{fingerprint: name}}, got {path!r}") from None
    try:
        registry.check(names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return names


def import_extra(name: str, extra: str) -> ModuleType:
    """Import a module that `toco-kernels[extra]` brings, or end the command with one line that says how to get it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise SystemExit(f'{error.name} is missing: pip install "toco-kernels[{extra}]"') from None
