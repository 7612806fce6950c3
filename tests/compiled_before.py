"""A compiler launcher for CMake: takes an object file from an earlier build where compiling would only repeat it.

    python compiled_before.py BUILD COMPILER ARGUMENT …

BUILD is a build folder of the same project at another place. Its object is taken if the same command made it, and if
every file that it was made from is the same here, and older than it. Otherwise the compiler runs, without optimising:
such builds are for trying installations.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = ("csrc", "python")  # in the project's folder, where an environment with torch's headers may be too


def remembered(build: Path) -> dict[str, str]:
    """What CMake remembers of a build folder."""
    cache = build / "CMakeCache.txt"
    return dict(re.findall(r"(?m)^(\w+):\w+=(.*)$", cache.read_text())) if cache.exists() else {}


def find(build: Path, command: list[str], here: Path) -> tuple[Path, list[Path]] | None:
    """The object in `build` that `command` would make in the build folder `here`, and the sources that it depends on.

    None where there is none, or another.
    """
    there, ours = remembered(build), remembered(here)
    if "-o" not in command or not there or not ours:
        return None
    name = command[command.index("-o") + 1]
    old_root, root = there["CMAKE_HOME_DIRECTORY"], ours["CMAKE_HOME_DIRECTORY"]

    def ninja(*question: str) -> str:
        ask = [there["CMAKE_MAKE_PROGRAM"], "-t", *question, name]
        return subprocess.run(ask, cwd=build, capture_output=True, text=True, check=False).stdout

    made = build / name
    if not made.exists() or shlex.split(ninja("commands", "-s")) != [word.replace(root, old_root) for word in command]:
        return None
    head, *files = ninja("deps").strip().splitlines()
    if not head.endswith("(VALID)"):
        return None
    sources = []
    for file in map(Path, map(str.strip, files)):
        if not file.exists() or file.stat().st_mtime_ns > made.stat().st_mtime_ns:
            return None
        if any(file.is_relative_to(Path(old_root, folder)) for folder in SOURCES):
            sources.append(Path(root) / file.relative_to(old_root))
            if not sources[-1].exists() or sources[-1].read_bytes() != file.read_bytes():
                return None
    return made, sources


def main() -> int:
    """Copy an object, or compile it."""
    build, command = Path(sys.argv[1]), sys.argv[2:]
    found = find(build, command, Path.cwd())
    if not found:
        return subprocess.run(["-O0" if word == "-O3" else word for word in command], check=False).returncode
    made, sources = found
    name = command[command.index("-o") + 1]
    shutil.copyfile(made, name)
    escaped = " ".join(str(source).replace(" ", "\\ ") for source in sources)
    Path(command[command.index("-MF") + 1]).write_text(f"{name}: {escaped}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
