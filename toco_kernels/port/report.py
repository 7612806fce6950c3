"""What `run` prints at the end, on standard error."""

import json
import os
import tempfile
from pathlib import Path

from . import importer, registry
from .slots import SLOTS

COLUMNS = ("replaced", "in", "promise", "first call", "calls", "ms before", "ms now", "MB before", "MB now")


def of_this_process() -> dict:
    """What happened in this process, as JSON can carry it."""
    slots = []
    for slot in SLOTS:
        verdict = slot.verdict
        row = {
            "name": slot.name,
            "file": slot.file,
            "line": slot.line,
            "replacement": f"{slot.replacement.module}.{slot.replacement.name}",
            "guarantee": str(slot.replacement.guarantee),
            "state": verdict.state if verdict else "compiled, not compared" if slot.compiled else "never called",
            "ours": verdict is None or verdict.ours,
            "detail": verdict.detail if verdict else "",
            "calls": slot.calls,
            "seconds": slot.seconds,
        }
        for name in ("before", "after"):
            cost = getattr(verdict, name, None)
            row[name] = None if cost is None else {"ms": cost.ms, "mb": cost.mb}
        slots.append(row)
    left = [dict(zip(("file", "line", "name", "why"), x, strict=True)) for x in importer.CHANGES.left]
    shims = [dict(zip(("file", "line", "why"), x, strict=True)) for x in importer.CHANGES.shims]
    unmet = sorted(importer.CHANGES.unmet)
    return {"pid": os.getpid(), "replaced": slots, "shims": shims, "left_alone": left, "also_unmet": unmet}


def leave(folder: str) -> None:
    """A child's report, where its parent finds it."""
    handle, _ = tempfile.mkstemp(dir=folder, suffix=".json")
    with os.fdopen(handle, "w") as file:
        json.dump(of_this_process(), file)


def gathered(folder: str) -> dict:
    """The report of this process with those of its children in it."""
    whole = of_this_process()
    whole["children"] = 0
    rows = {(row["file"], row["line"]): row for row in whole["replaced"]}
    for path in sorted(Path(folder).glob("*.json")):
        child = json.loads(path.read_text())
        whole["children"] += 1
        for row in child["replaced"]:
            mine = rows.setdefault((row["file"], row["line"]), row)
            if mine is row:
                whole["replaced"].append(row)
                continue
            mine["calls"] += row["calls"]
            mine["seconds"] += row["seconds"]
            if row["state"] != "never called" and (mine["state"] == "never called" or not row["ours"]):
                mine |= {key: row[key] for key in ("state", "ours", "detail", "before", "after")}
        for key in ("shims", "left_alone"):
            whole[key] += [x for x in child[key] if x not in whole[key]]
        whole["also_unmet"] = [x for x in whole["also_unmet"] if x in child["also_unmet"]]
    return whole


def as_text(found: dict) -> str:
    """The report for people."""
    from ..cli import format_table

    lines = ["", "toco_kernels"]
    if found["replaced"]:
        lines.append(format_table([COLUMNS, *map(_row, found["replaced"])]))
        lines.append("before, now: one call with its backward, when the two were compared")
        lines += [f"{row['name']}: {row['state']}: {row['detail']}" for row in found["replaced"] if row["detail"]]
    else:
        lines.append("nothing was replaced")
    if found.get("children"):
        children = "a child process" if found["children"] == 1 else f"{found['children']} child processes"
        lines.append(f"calls include those of {children}")
    lines += [f"shim: {x['file']}:{x['line']}: {x['why']}" for x in found["shims"]]
    lines += [f"left alone: {x['file']}:{x['line']}: {x['name']}: {x['why']}" for x in found["left_alone"]]
    lines += [f"--also: no definition met has the fingerprint {x}" for x in found["also_unmet"]]
    lines += filter(None, [registry.hint((x["name"], x["why"]) for x in found["left_alone"])])
    return "\n".join(lines)


def _row(row: dict) -> tuple[str, ...]:
    def number(cost: dict | None, key: str) -> str:
        return "" if cost is None or cost[key] is None else f"{cost[key]:.3g}"

    costs = [number(row[cost], key) for key in ("ms", "mb") for cost in ("before", "after")]
    state = row["state"] if row["ours"] else f"{row['state']}, original stays"
    promise = row["guarantee"].partition(":")[0]
    return (row["name"], f"{row['file']}:{row['line']}", promise, state, str(row["calls"]), *costs)
