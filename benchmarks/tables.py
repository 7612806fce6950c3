"""Write the README's benchmark tables from benchmarks/results.

    python benchmarks/tables.py [--check] [--readme PATH] [--results DIR]

A table goes between `<!-- benchmarks: NAME -->` and `<!-- /benchmarks -->`, where NAME is an operator or a room.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from rows import RESULTS, ROOT, sources

from toco_kernels import ROOMS

OURS, LIMITS = "toco_kernels", ("copy", "blas")
LINE = ("case", "shape", "dtype", "precision", "direction", "timer", "cache", "threads")  # what rows of one line share
STALE = "measured before the last change"
MARKED = re.compile(r"(<!-- benchmarks: (\w+) -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the tables are out of date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    before = args.readme.read_text()
    after = fill(before, [json.loads(file.read_text()) for file in sorted(args.results.glob("*.json"))])
    if not args.check:
        args.readme.write_text(after)
    elif after != before:
        return f"{args.readme} is out of date: run `python benchmarks/tables.py` and commit what it writes"


def fill(readme: str, machines: list[dict]) -> str:
    """The README with the tables of these machines between its markers."""

    def tables(marker: re.Match) -> str:
        start, name, end = marker.groups()
        ops = ROOMS.get(name, (name,))
        chosen = [(m, [row for row in m["rows"] if row["op"] in ops]) for m in machines]
        found = [render(m["machine"], m["commit"], rows) for m, rows in chosen if rows]
        return start + "\n".join(found or ["Not measured yet.\n"]) + end

    return MARKED.sub(tables, readme)


def render(machine: dict, commit: str, rows: list[dict]) -> str:
    """One Markdown table per operator."""
    place = machine["gpu"] or f"{machine['cpu']}, {machine['isa']}, {machine['cores']} cores"
    return "\n".join(
        f"**`{op}`** on {place}, torch {machine['torch']}, commit {commit}\n\n"
        + _table([row for row in rows if row["op"] == op])
        for op in sorted({row["op"] for row in rows})
    )


def _table(rows: list[dict]) -> str:
    lines: dict[tuple, dict[str, dict]] = {}  # what the providers of a line share -> their rows
    for row in rows:
        name = row["provider"].removesuffix(f"+{row['precision']}")
        lines.setdefault(tuple(row[key] for key in LINE), {})[name] = row
    rivals = sorted({name for line in lines.values() for name in line} - {OURS, *LIMITS})
    header = ["case", "shape", "dtype", "direction", "timer", f"{OURS}, ms (p20–p80)", *(f"{r}, ms" for r in rivals)]
    header += ["peak MB, ours / published", "error, ours / published"]
    cells = [header, ["---"] * len(header), *(_line(line, rivals) for line in lines.values())]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _line(line: dict[str, dict], rivals: list[str]) -> list[str]:
    row, ours = next(iter(line.values())), line.get(OURS)
    stale = any(row["sources"] != sources(_room(row["op"])) for row in line.values())
    case = row["case"] + (f" *({STALE})*" if stale else "")
    dtype = row["dtype"] if row["precision"] == row["dtype"] else f"{row['dtype']}, {row['precision']}"
    timer = f"wall, {row['threads']} threads" if row["timer"] == "wall" else f"{row['timer']}, {row['cache']} L2"
    time = "—"
    if ours:
        time = f"{_number(ours['ms'])} ({_number(ours['ms_p20'])}–{_number(ours['ms_p80'])})"
        if any(line[name]["ms"] < ours["ms"] for name in rivals if name in line):
            time += " **slower**"
    return [
        *(case, row["shape"], dtype, row["direction"], timer, time),
        *(_rival(line.get(name), ours) for name in rivals),
        *(_pair(line, "peak_mb"), _pair(line, "max_error")),
    ]


def _rival(rival: dict | None, ours: dict | None) -> str:
    if not rival:
        return "—"
    return _number(rival["ms"]) + (f" ({_number(rival['ms'] / ours['ms'], 2)}x)" if ours else "")


def _pair(line: dict[str, dict], key: str) -> str:
    values = [line.get(name, {}).get(key) for name in (OURS, "published")]
    return " / ".join("—" if value is None else _number(value, 2) for value in values)


def _number(x: float, digits: int = 3) -> str:
    """As many digits, no exponent above one."""
    return f"{x:.0f}" if x >= 10**digits else f"{x:.{digits}g}"


def _room(op: str) -> str:
    whole_steps = "methods"
    return next((room for room, names in ROOMS.items() if op in names), whole_steps if op.endswith("_step") else op)


if __name__ == "__main__":
    sys.exit(main())
