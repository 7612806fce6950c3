"""`python -m toco_kernels bench`: what would this machine gain?

It runs the bench files of `benchmarks/`, with pytest, as `make bench` does, and sums up what they write.
"""

import argparse
import io
import json
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from .. import ROOMS
from . import failing, format_table, import_extra

OURS, PUBLISHED, LIMITS = "toco_kernels", "published", ("copy", "blas")
STEPS = "_step"  # how the names of whole training steps end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("op", nargs="*", metavar="OP", help="operators or rooms (default: all, and whole steps)")
    parser.add_argument("--all", action="store_true", help="all cases, not only the most telling one of each operator")
    parser.add_argument("--compile", action="store_true", help="the rivals under torch.compile too; takes minutes")
    parser.add_argument("--json", action="store_true", help="print all rows as one JSON object")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the gains; needs matplotlib")


def run(args: argparse.Namespace) -> int:
    """Measure, and print a table; the exit code is 1 if an operator was wrong or could not be measured."""
    import_extra("pytest", "bench")
    import_extra("pytest_benchmark", "bench")
    pyplot = import_extra("matplotlib.pyplot", "plot") if args.plot else None
    from ..common import benchmarks

    with failing():
        benchmarks.make_importable()
        found = measure(benchmarks.folder(), args.op, every_case=args.all, compiled=args.compile)
    print(json.dumps(found, indent=2) if args.json else as_text(found))
    if pyplot:
        draw(gains(found["rows"]), pyplot, args.plot)
    return 1 if found["failed"] else 0


class Progress:
    """A plugin of pytest: chooses the cases, says which one runs, and keeps what went wrong."""

    def __init__(self, chosen: list[str]):
        self.chosen = chosen
        self.failed: dict[str, str] = {}
        self.left_out: dict[str, str] = {}

    def pytest_collection_modifyitems(self, config, items) -> None:
        """Keep the operators and rooms that were asked for."""
        if not self.chosen:
            return
        wanted = [item for item in items if self._is_wanted(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
        items[:] = wanted

    def _is_wanted(self, item) -> bool:
        room = item.path.stem.removeprefix("bench_")
        op = item.originalname.removeprefix("test_")
        return any(name in (room, op) or op in ROOMS.get(name, ()) for name in self.chosen)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Say what is measured now."""
        print(_short(nodeid), file=sys.stderr, flush=True)

    def pytest_runtest_logreport(self, report) -> None:
        """Keep why a case has no numbers."""
        if report.failed:
            self.failed[_short(report.nodeid)] = _reason(report)
        elif report.skipped:  # a rival that was wrong in less precision, too
            self.left_out[_short(report.nodeid)] = getattr(report, "wasxfail", "") or _reason(report)

    def pytest_collectreport(self, report) -> None:
        """A bench file that needs what is not installed."""
        if report.failed:
            self.failed[report.nodeid] = _reason(report)
        elif report.skipped:
            self.left_out[report.nodeid] = _reason(report)


def _short(nodeid: str) -> str:
    return nodeid.split("::")[-1].removeprefix("test_")


def _reason(report) -> str:
    """The last line of what pytest says."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.strip().splitlines()[-1].removeprefix("E").strip()


def measure(folder: Path, chosen: list[str], *, every_case: bool, compiled: bool) -> dict:
    """Run the bench files.

    Args:
        folder: where they are.
        chosen: names of operators or rooms; empty: all.
        every_case: not only the decisive ones.
        compiled: torch.compile of the rivals too.

    Returns:
        `machine`, `commit` and `rows`, as in benchmarks/results; `failed` and `left_out`, case -> why.

    Raises:
        ValueError: no bench is of that name.
    """
    import pytest
    from machine import describe

    progress, said = Progress(chosen), io.StringIO()
    with tempfile.TemporaryDirectory() as results:
        options = [*([] if every_case else ["-m", "decisive"]), *(["--compile"] if compiled else [])]
        with redirect_stdout(said):
            status = pytest.main([str(folder), "-q", "--tb=short", "--results", results, *options], plugins=[progress])
        if status == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise ValueError(f"OP must be operators or rooms with a benchmark, got {' '.join(chosen)}")
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"pytest ended with {status!r}:\n{said.getvalue()}")
        files = [json.loads(file.read_text()) for file in Path(results).glob("*.json")]
    found = files[0] if files else {"machine": describe(), "commit": None, "rows": []}
    return {**found, "failed": progress.failed, "left_out": progress.left_out}


def gains(rows: list[dict]) -> list[dict]:
    """One entry for each case and direction: ours, and how many times ours its rivals take. Whole steps come first."""
    cases: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        if row["timer"] == "wall" and row["provider"] not in LIMITS:
            name = row["provider"].removesuffix(f"+{row['precision']}")
            key = tuple(row[k] for k in ("op", "case", "direction", "precision"))
            cases.setdefault(key, {})[name] = row
    found = []
    for (op, case, direction, precision), providers in cases.items():
        ours = providers.pop(OURS, None)
        if ours is None:
            continue
        times = {name: row["ms"] / ours["ms"] for name, row in providers.items()}
        published = providers.get(PUBLISHED, {}).get("peak_mb")
        memory = published / ours["peak_mb"] if published and ours["peak_mb"] else None
        entry = {"op": op, "case": case, "direction": direction, "precision": precision, "ms": ours["ms"]}
        found.append(entry | {"times": times, "memory": memory})
    return sorted(found, key=lambda entry: not entry["op"].endswith(STEPS))


def as_text(found: dict) -> str:
    """The report for people."""
    machine, entries = found["machine"], gains(found["rows"])
    rivals = list(dict.fromkeys(name for entry in entries for name in entry["times"]))
    rows = [("operator", "case", "direction", "ours, ms", *rivals, "memory", "")]
    for entry in entries:
        times = [f"{entry['times'][name]:.2f}x" if name in entry["times"] else "" for name in rivals]
        memory = f"{entry['memory']:.1f}x" if entry["memory"] else ""
        slower = "SLOWER than a rival" if any(ratio < 1 for ratio in entry["times"].values()) else ""
        case = entry["case"] if entry["precision"] == "float32" else f"{entry['case']}, {entry['precision']}"
        rows.append((entry["op"], case, entry["direction"], f"{entry['ms']:.3g}", *times, memory, slower))
    place = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    lines = [f"{place}, torch {machine['torch']}: how many times ours the others take", format_table(rows)]
    lines += [f"not measured: {case}: {why}" for case, why in (found["failed"] | found["left_out"]).items()]
    return "\n".join(lines)


def draw(entries: list[dict], pyplot, file: Path) -> None:
    """Bars of the gains, on a logarithmic axis; the line at 1 is ours."""
    pyplot.switch_backend("Agg")
    rivals = list(dict.fromkeys(name for entry in entries for name in entry["times"]))
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.45 * len(entries)), layout="constrained")
    for i, name in enumerate(rivals):
        places = [place + 0.8 * i / len(rivals) - 0.3 for place, e in enumerate(entries) if name in e["times"]]
        ratios = [entry["times"][name] for entry in entries if name in entry["times"]]
        axes.barh(places, ratios, height=0.8 / len(rivals), label=name)
    axes.set_yticks(range(len(entries)), [f"{e['op']}, {e['case']}, {e['direction']}" for e in entries], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="times ours")
    axes.legend()
    figure.savefig(file)
    pyplot.close(figure)
