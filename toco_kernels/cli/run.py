"""`python -m toco_kernels run SCRIPT`: a script as it is, its published functions replaced while it is imported."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from . import known_variants


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--trust", action="store_true", help="do not compare original and replacement at their first call"
    )
    parser.add_argument(
        "--also",
        type=known_variants,
        default={},
        metavar="FILE",
        help="variants of your own, as JSON {fingerprint: name in toco_kernels.compat}",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report as JSON, too")
    parser.add_argument("script", metavar="SCRIPT", help="the script; with torchrun: torchrun … -m toco_kernels run …")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="the script's own arguments")
    parser.set_defaults(error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Run it, then report on standard error; the exit code is the script's."""
    if not Path(args.script).is_file():
        args.error(f"argument SCRIPT: must be a file, got {args.script!r}")
    from ..port import importer, report

    process, reports = os.getpid(), tempfile.mkdtemp(prefix="toco_kernels-")
    importer.install(importer.Settings(os.path.abspath(args.script), args.trust, args.also, reports))
    try:
        importer.run_main(args.script, args.arguments)
    except Exception as error:  # shown as if the script had been started by itself
        traceback = _of_script(error.__traceback__)
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        return 1
    finally:
        if os.getpid() == process:  # and not a child of the script's that comes by here
            if os.environ.get("RANK", "0") == "0":
                found = report.gathered(reports)
                print(report.as_text(found), file=sys.stderr)
                if args.report:
                    args.report.write_text(json.dumps(found, indent=2) + "\n")
            shutil.rmtree(reports)
    return 0


def _of_script(traceback: TracebackType) -> TracebackType:
    """A traceback without our own frames above the script's."""
    ours = str(Path(__file__).parents[1])
    while traceback.tb_next and traceback.tb_frame.f_code.co_filename.startswith(ours):
        traceback = traceback.tb_next
    return traceback
