"""Write the benchmark tables of README.md and docs/benchmarks.md from benchmarks/results.

    python benchmarks/tables.py [--check] [--readme PATH …] [--results DIR]

A table goes between `<!-- benchmarks: NAME -->` and `<!-- /benchmarks -->`, where NAME is an operator, a room, `steps`
for whole training steps, `summary` for a line of each operator, `floors` for what a GPU could do at best, or `losses`
for every shape where a rival is faster.
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
H200 = {"copy": 4.3e12, "float32": 60e12, "TF32": 390e12}  # bytes and operations a second, as others have measured
STALE = "measured before the last change"
PAGES = [ROOT / "README.md", ROOT / "docs/benchmarks.md", ROOT / "docs/gpu.md"]
MARKED = re.compile(r"(<!-- benchmarks: (\w+) -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the tables are out of date")
    parser.add_argument("--readme", type=Path, nargs="+", default=PAGES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    machines = [json.loads(file.read_text()) for file in sorted(args.results.glob("*.json"))]
    machines.sort(
        key=lambda machine: sum(map(_is_stale, machine["rows"])) / max(1, len(machine["rows"]))
    )  # the newest first
    for page in args.readme:
        before = page.read_text()
        after = fill(before, machines)
        if not args.check:
            page.write_text(after)
        elif after != before:
            return f"{page} is out of date: run `python benchmarks/tables.py` and commit what it writes"


def fill(page: str, machines: list[dict]) -> str:
    """The page with the tables of these machines between its markers."""

    def tables(marker: re.Match) -> str:
        start, name, end = marker.groups()
        if name in WHOLE:
            return start + WHOLE[name](machines) + end
        ops = ROOMS.get(name, (name,))
        if name == "steps":
            ops = {row["op"] for m in machines for row in m["rows"] if _is_step(row["op"])}
        chosen = [(m, [row for row in m["rows"] if row["op"] in ops]) for m in machines]
        found = [render(m["machine"], m["commit"], rows) for m, rows in chosen if rows]
        return start + "\n".join(found or ["Not measured yet.\n"]) + end

    return MARKED.sub(tables, page)


def render(machine: dict, commit: str, rows: list[dict]) -> str:
    """One Markdown table per operator."""
    return "\n".join(
        f"**`{op}`** on {_place(machine)}, torch {machine['torch']}, commit {commit}\n\n"
        + _table([row for row in rows if row["op"] == op])
        for op in sorted({row["op"] for row in rows}, key=lambda op: (not _is_step(op), op))
    )


def _place(machine: dict) -> str:
    return machine["gpu"] or f"{machine['cpu']}, {machine['isa']}, {machine['cores']} cores"


def losses(machines: list[dict]) -> str:
    """Where a rival is faster: one Markdown table, with the fastest of them."""
    header = ["operator", "case", "direction", "timer", "rival", "ours / the rival, ms"]
    cells = []
    for machine in machines:
        for line in _lines(machine["rows"]):
            rivals = [row for name, row in line.items() if name not in (OURS, *LIMITS)]
            fastest = min(rivals, key=lambda row: row["ms"], default=None)
            if fastest and OURS in line and fastest["ms"] < line[OURS]["ms"]:
                case, shape, dtype, direction, timer, *_ = _line(line, [])
                both = f"{_number(line[OURS]['ms'])} / {_number(fastest['ms'])}"
                what = f"{case}: {shape}, {dtype}"
                cells.append(
                    [
                        f"`{fastest['op']}`",
                        what,
                        direction,
                        f"{timer}, {_place(machine['machine'])}",
                        fastest["provider"],
                        both,
                    ]
                )
    if not cells:
        return "No rival is faster at any shape that was measured.\n"
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *cells])


def summary(machines: list[dict]) -> str:
    """The first case of every operator, its training where it has a gradient: a table for each machine."""
    return "\n".join(
        f"{_place(m['machine'])}, torch {m['machine']['torch']}:\n\n{_summary(m['rows'])}" for m in machines
    )


def _summary(rows: list[dict]) -> str:
    header = ["operator", "case", "ms", "published", "best rewrite", "peak MB, ours / published"]
    chosen: dict[str, dict[str, dict]] = {}
    for line in _lines([row for row in rows if row["timer"] != "graph"]):
        row = next(iter(line.values()))
        first = next(iter(chosen.get(row["op"], line).values()))
        training = (row["case"], row["shape"], row["dtype"]) == (first["case"], first["shape"], first["dtype"])
        if OURS in line and (row["op"] not in chosen or (training and "backward" in row["direction"])):
            chosen[row["op"]] = line
    cells = []
    for op in sorted(chosen, key=lambda op: (not _is_step(op), op)):
        line = chosen[op]
        case, _, _, direction, _, time, published, rewrite, peak, _ = _line(line, ["published", "rewrite"])
        cells.append([f"`{op}`", f"{case}, {direction}", re.sub(r" \(.*?\)", "", time), published, rewrite, peak])
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *cells])


def floors(machines: list[dict]) -> str:
    """The least time of an H200 for the first case of every operator: by bytes, and by operations."""
    chosen: dict[str, dict] = {}
    for row in (row for machine in machines for row in machine["rows"]):
        first = chosen.setdefault(row["op"], row)
        if row["case"] == first["case"] and "backward" in row["direction"]:
            chosen[row["op"]] = row
    header = ["operator", "case", "MB", "GFLOP", *(f"{name}, µs" for name in H200)]
    cells = [header, ["---"] * len(header)]
    for op in sorted(chosen, key=lambda op: (not _is_step(op), op)):
        row, flop = chosen[op], chosen[op]["flop"]
        times = [row["bytes"] / H200["copy"], *(flop / rate for name, rate in H200.items() if name != "copy")]
        what = f"{row['case']}, {row['direction']}"
        sizes = [_number(row["bytes"] / 1e6), _number(flop / 1e9)]
        cells.append([f"`{op}`", what, *sizes, *(_number(t * 1e6) for t in times)])
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


WHOLE = {"losses": losses, "summary": summary, "floors": floors}  # tables of everything, by name


def _lines(rows: list[dict]) -> list[dict[str, dict]]:
    """Rows of one line together, by provider."""
    lines: dict[tuple, dict[str, dict]] = {}  # what the providers of a line share -> their rows
    for row in rows:
        name = row["provider"].removesuffix(f"+{row['precision']}")
        lines.setdefault((row["op"], *(row[key] for key in LINE)), {})[name] = row
    return [*lines.values()]


def _table(rows: list[dict]) -> str:
    lines = _lines(rows)
    rivals = sorted({name for line in lines for name in line} - {OURS, *LIMITS})
    header = ["case", "shape", "dtype", "direction", "timer", f"{OURS}, ms (p20–p80)", *(f"{r}, ms" for r in rivals)]
    header += ["peak MB, ours / published", "error, ours / published"]
    cells = [header, ["---"] * len(header), *(_line(line, rivals) for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _is_stale(row: dict) -> bool:
    """Whether its room has changed since."""
    return row["sources"] != sources(_room(row["op"]))


def _line(line: dict[str, dict], rivals: list[str]) -> list[str]:
    row, ours = next(iter(line.values())), line.get(OURS)
    stale = any(map(_is_stale, line.values()))
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


def _is_step(op: str) -> bool:
    """Whether this is a whole training step."""
    return op.endswith("_step")


def _room(op: str) -> str:
    whole_steps = "methods"
    return next((room for room, names in ROOMS.items() if op in names), whole_steps if _is_step(op) else op)


if __name__ == "__main__":
    sys.exit(main())
