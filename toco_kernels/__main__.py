"""`python -m toco_kernels <command>`."""

import argparse
import os
import sys
from importlib import import_module

from .cli import COMMANDS


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Only that command's module is imported, so that `--help` is instant."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m toco_kernels",
        description="Fused kernels and drop-in training modules for weakly-supervised semantic segmentation.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    module = None
    for command, summary in COMMANDS.items():
        subparser = subparsers.add_parser(command, help=summary, description=summary, allow_abbrev=False)
        if argv[:1] == [command]:
            module = import_module(f".cli.{command.replace('-', '_')}", __package__)
            module.add_arguments(subparser)
    args = parser.parse_args(argv)
    return module.run(args)


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again when it ends
        code = 1
    sys.exit(code)
