"""Writes docs/support.md: what is built, what CI tests, what has run on a GPU, and what has never run.

    python docs/support.py [--check] [--record WHO | --confirm WHO]

Nothing in the page is claimed by hand. Lower bounds come from pyproject.toml, GPU architectures from CMakeLists.txt,
dtypes from tests/test_contract.py, runs on GPUs from benchmarks/results, and runs of the tests from docs/support.json.

Whenever all tests pass, pytest notes in build/tested.json under which system, Python, torch and CUDA they did.
`--record WHO` adds that note to docs/support.json. CI ends with `--confirm CI`, which says where its note is not what
docs/support.json has of it: then record what CI tests now.
"""

import argparse
import json
import platform
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "support.md"
RUNS = ROOT / "docs" / "support.json"
NOTE = ROOT / "build" / "tested.json"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
SYSTEMS = {  # where wheels are built with kernels, and where that of pure Python is installed
    "Linux x86_64": True,
    "Linux aarch64": False,
    "macOS": False,
    "Windows": False,
}
BUILT, TESTED, ONCE, ON_GPU, NEVER = "built", "CI-tested", "tested once", "run on a GPU", "never run"
INTRODUCTION = """# What is supported

Written by `python docs/support.py` from files of the repository; `make check` fails when it is out of date.

* **built**: it can be compiled and packed (`make wheel`), and nothing more is claimed.
* **CI-tested**: all tests that need no GPU pass there, whenever something changes.
* **tested once**: they passed there by hand, before some release.
* **run on a GPU**: results measured there are in `benchmarks/results`, each verified before it was timed.
* **never run**: nobody has tried. It may work: `python -m toco_kernels doctor` tells, and we would like to know.
"""


def facts() -> dict:
    """What the files say."""
    project = (ROOT / "pyproject.toml").read_text()
    cmake = (ROOT / "CMakeLists.txt").read_text()
    contract = (ROOT / "tests" / "test_contract.py").read_text()
    listed, older = re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES ([^)]+)\)", cmake)
    results = [json.loads(file.read_text()) for file in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]
    return {
        "python": re.search(r'requires-python = ">=([\d.]+)"', project)[1],
        "torch": re.search(r'"torch>=([\d.]+)"', project)[1],
        "architectures": listed.split(),
        "older nvcc": (re.search(r"VERSION_LESS ([\d.]+)", cmake)[1], older.split()),
        "dtypes": re.findall(r"torch\.(\w+)", re.search(r"^DTYPES = \[(.*)\]", contract, re.MULTILINE)[1]),
        "runs": _runs(),
        "GPU runs": [r for r in results if r["machine"]["gpu"]],
    }


def page(known: dict) -> str:
    """The page."""
    return "\n".join([INTRODUCTION, *_systems(known), *_torches(known), *_gpus(known)])


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]]


def _older(version: str, least: str) -> bool:
    return [*map(int, version.split("."))] < [*map(int, least.split("."))]


def _systems(known: dict) -> list[str]:
    pythons = [python for python in PYTHONS if not _older(python, known["python"])]
    rows = []
    for system, compiled in SYSTEMS.items():
        runs = sorted((run for run in known["runs"] if run["os"] == system), key=lambda run: run["by"] == "CI")
        tested = {run["python"]: _tested(run) for run in runs}
        otherwise = BUILT if compiled else f"{NEVER}; the wheel of pure Python"
        rows.append([system, *(tested.get(python, otherwise) for python in pythons)])
    text = "## System and Python, on the CPU\n"
    return [text, *_table(["", *(f"Python {python}" for python in pythons)], rows), ""]


def _tested(run: dict) -> str:
    return TESTED if run["by"] == "CI" else ONCE


def _torches(known: dict) -> list[str]:
    """One binary serves all, by the stable ABI; these it was tried under."""
    tried = {}
    for run in known["runs"]:
        tried.setdefault((run["torch"], run["cuda"]), set()).add(f"{_tested(run)}, on the CPU")
    for result in known["GPU runs"]:
        machine = result["machine"]
        tried.setdefault((_two(machine["torch"]), machine["cuda"]), set()).add(f"{ON_GPU}: {machine['gpu']}")
    rows = [[torch, cuda or "none", ", ".join(sorted(how))] for (torch, cuda), how in sorted(tried.items(), key=str)]
    if known["torch"] not in {run["torch"] for run in known["runs"]}:
        rows.insert(0, [f"{known['torch']}, the oldest", "any", f"{BUILT} for it, by the stable ABI; {NEVER}"])
    return [
        f"## torch and CUDA\n\nOne binary is for torch {known['torch']} and every later one, with or without CUDA.\n",
        *_table(["torch", "CUDA", ""], rows),
        "",
    ]


def _gpus(known: dict) -> list[str]:
    version, older = known["older nvcc"]
    rows = []
    for architecture in known["architectures"]:
        number = re.match(r"\d+", architecture)[0]
        kind = "machine code" if architecture.endswith("-real") else "machine code and PTX"
        since = "" if any(re.match(r"\d+", other)[0] == number for other in older) else f", by nvcc {version} or later"
        cells = [_gpu_cell(known, number, dtype) for dtype in known["dtypes"]]
        rows.append([f"{int(number) // 10}.{int(number) % 10}", f"{kind}{since}", *cells])
    kinds = ["CPU", "C++ in three instruction sets", *[TESTED] * len(known["dtypes"])]
    header = ["compute capability", "in a wheel", *known["dtypes"]]
    note = (
        "Operators whose GPU kernels are in Triton need compute capability 8.0, and run their reference in float64 "
        "and on older GPUs; their kernels are interpreted and compiled in tests. GPUs of other makers: never run.\n"
    )
    return ["## Device and dtype\n", *_table(header, [kinds, *rows]), "", note]


def _gpu_cell(known: dict, number: str, dtype: str) -> str:
    for result in known["GPU runs"]:
        capability = "".join(map(str, result["machine"].get("capability", [])))
        if capability == number and any(row["dtype"] == dtype for row in result["rows"]):
            return ON_GPU
    return f"{BUILT}, {NEVER}"


def _two(version: str) -> str:
    """The first two numbers of a version."""
    return ".".join(version.split("+")[0].split(".")[:2])


def note() -> None:
    """Write under what this process runs: tests/conftest.py calls it where all tests have passed."""
    import torch

    system = platform.system().replace("Darwin", "macOS")
    here = {
        "os": f"Linux {platform.machine()}" if system == "Linux" else system,
        "python": _two(platform.python_version()),
        "torch": _two(torch.__version__),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }
    NOTE.parent.mkdir(exist_ok=True)
    NOTE.write_text(json.dumps(here) + "\n")


def noted(who: str) -> dict:
    """The note, as an entry of docs/support.json.

    Raises:
        SystemExit: the tests have not passed here.
    """
    if not NOTE.exists():
        raise SystemExit(f"{NOTE} is not there: all tests must have passed here, by `make test`")
    return {**json.loads(NOTE.read_text()), "by": who}


def record(who: str) -> None:
    """Add the note to the runs of the tests, in place of older ones of WHO's on this system and Python."""
    run = noted(who)
    newer = {"torch": run["torch"], "cuda": run["cuda"]}
    runs = [*(other for other in _runs() if other | newer != run), run]
    RUNS.write_text("[\n" + ",\n".join(f"  {json.dumps(run)}" for run in runs) + "\n]\n")


def confirm(who: str) -> str | None:
    """What is wrong with the claims for WHO, whose tests have passed here."""
    run, claimed = noted(who), [other for other in _runs() if other["by"] == who]
    if claimed == [run]:
        return None
    return f"{RUNS.name} must say that {who} tests {run} and nothing else, got {claimed}: --record {who}, and commit it"


def _runs() -> list[dict]:
    return json.loads(RUNS.read_text())


def main() -> str | None:
    """Write the page, or check it or its claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is out of date")
    parser.add_argument("--record", metavar="WHO", help="first add the note of the tests that passed here, as WHO's")
    parser.add_argument("--confirm", metavar="WHO", help="write nothing; fail unless WHO's claim is the note's")
    args = parser.parse_args()
    if args.confirm:
        return confirm(args.confirm)
    if args.record:
        record(args.record)
    text = page(facts())
    if not args.check:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        return "docs/support.md is out of date: run `python docs/support.py` and commit what it writes"


if __name__ == "__main__":
    sys.exit(main())
