"""The rows of results/<machine>.json: how they are kept, and which sources they belong to."""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

from toco_kernels import __version__

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
INSTALLED = Path(__file__).parent.name == "_benchmarks"  # in a wheel there are no sources: the version stands for them
KEY = ("op", "case", "shape", "dtype", "precision", "direction", "provider", "timer", "cache", "threads")


class Results:
    """One machine's file. Rows are written as soon as they are known and replace those of the same key."""

    def __init__(self, folder: Path, machine: dict):
        self.file = folder / f"{machine['name']}.json"
        self.machine, self.commit = machine, commit()
        self.measured: dict[tuple, dict] = {}

    def put(self, rows: list[dict]) -> None:
        """Write these rows beside all others of the file, which is whole at every moment."""
        self.measured |= {_key(row): row for row in rows}
        saved = json.loads(self.file.read_text()) if self.file.exists() else {"machine": self.machine, "rows": []}
        kept = saved["rows"] if saved["machine"] == self.machine else []  # another torch, another file
        merged = {_key(row): row for row in kept} | self.measured  # a replaced row keeps its place
        head = f'"machine": {json.dumps(self.machine)},\n"commit": {json.dumps(self.commit)}'
        body = ",\n".join(json.dumps(row) for row in merged.values())  # one line per row, for diffs
        self.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_suffix(".tmp")
        unfinished.write_text(f'{{{head},\n"rows": [\n{body}\n]}}\n')
        os.replace(unfinished, self.file)


def _key(row: dict) -> tuple:
    return tuple(row[name] for name in KEY)


def sources(room: str) -> str:
    """A hash of a room's files and what they share, white space aside. Rows with another one are older than them."""
    if INSTALLED:
        return __version__
    patterns = f"csrc/{room}/*", f"python/*/{room}.cpp", f"python/{room}.h", f"toco_kernels/{room}/*.py"
    patterns += "python/common.h", "toco_kernels/_library.py"
    files = {file for pattern in patterns for file in ROOT.glob(pattern)}
    unread = list(files)
    while unread:
        for header in re.findall(r'#include "(common/.+)"', unread.pop().read_text()):
            if (file := ROOT / "csrc" / header).exists() and file not in files:
                files.add(file)
                unread.append(file)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(b"%s\0%s\0" % (file.relative_to(ROOT).as_posix().encode(), b" ".join(file.read_bytes().split())))
    return digest.hexdigest()[:12]


def commit() -> str:
    """The commit that is checked out, `+dirty` where other files than results differ from it, 'unknown' without git."""

    if INSTALLED:
        return f"toco_kernels {__version__}"

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short=12", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
