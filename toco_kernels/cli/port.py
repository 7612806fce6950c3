"""`python -m toco_kernels port PATH`: a reviewable diff that puts this package into a repository."""

import argparse
import sys
from pathlib import Path

from ..port import registry
from . import import_extra, known_variants


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("path", type=Path, metavar="PATH", help="a repository, a folder of it, or one file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="change the files instead of printing a diff")
    what.add_argument("--check", action="store_true", help="print the diff, and fail if there is one: for CI")
    parser.add_argument(
        "--also",
        type=known_variants,
        default={},
        metavar="FILE",
        help="variants of your own, as JSON {fingerprint: name in toco_kernels.compat}; what is left alone is listed "
        "with its fingerprint",
    )
    parser.set_defaults(error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Print the diff on standard output, and what was done and not done on standard error."""
    import_extra("libcst", "port")
    from ..port import rewrite

    if not args.path.exists():
        args.error(f"argument PATH: must be a folder or a file, got {str(args.path)!r}")
    with registry.adding(args.also):
        files = rewrite.repository(args.path)
    changed = [file for file in files if file.is_changed]
    for file in changed:
        if args.write:
            file.path.write_bytes(file.after)
        else:
            sys.stdout.write(file.diff().encode(errors="surrogateescape").decode(errors="replace"))
    for line in summary(files, "changed" if args.write else "to change", args.also):
        print(line, file=sys.stderr)
    return 1 if args.check and changed else 0


def summary(files: list, verb: str, also: dict[str, str]) -> list[str]:
    """What was found, line by line."""
    replaced = sum(len(file.analysis.matches) for file in files if file.analysis)
    shims = sum(len(file.analysis.shims) for file in files if file.analysis)
    changed = sum(file.is_changed for file in files)
    lines = [f"{len(files)} files, {changed} {verb}: {replaced} definitions replaced, {shims} shims"]
    for file in files:
        if file.problem:
            lines.append(f"left alone: {file.name}: {file.problem}")
        elif file.analysis:
            lines += [f"left alone: {file.name}:{line}: {name}: {why}" for name, line, why in file.analysis.left]
    analyses = [file.analysis for file in files if file.analysis]
    met = set().union(*(analysis.fingerprints for analysis in analyses))
    lines += [
        f"--also: no definition here has the fingerprint {fingerprint}"
        for fingerprint in also
        if fingerprint not in met
    ]
    lines += filter(None, [registry.hint((name, why) for x in analyses for name, _, why in x.left)])
    return lines if changed else [*lines, "Nothing to do."]
