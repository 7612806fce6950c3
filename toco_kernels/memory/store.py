"""What processes found out, in a file that is whole at every moment: who is interrupted goes on there."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from ..common.errors import bad_value
from ..common.measure import Outcome


class Store:
    """Outcomes by what was asked.

    Args:
        file: where they are kept; None: nowhere.
        made_with: what they depend on beside the question: the device, versions.

    Raises:
        ValueError: the file holds something else, or was made with something else.
    """

    def __init__(self, file: Path | None, made_with: dict):
        self.file, self.made_with = file, made_with
        self.known: dict[str, object] = {}
        if file is not None and not file.absolute().parent.is_dir():
            raise bad_value("--cases", "be in a folder that exists", file)
        if file is None or not file.exists():
            return
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            there, self.known = dict(saved["made_with"]), dict(saved["cases"])
        except (ValueError, KeyError, TypeError, OSError):
            raise bad_value("--cases", "be a file that this command has written, or a new one", file) from None
        if differs := [name for name in made_with if there.get(name) != made_with[name]]:
            raise bad_value("--cases", f"be of the same {', '.join(differs)} as now", f"{file} of another")

    def get(self, question: str, measure: Callable[[], Outcome]) -> Outcome:
        """What is known, or what `measure()` finds out. What failed is asked again: there may be more memory now."""
        if question in self.known:
            return Outcome(self.known[question], "")
        outcome = measure()
        if not outcome.failure:
            self.known[question] = outcome.value
            self._save()
        return outcome

    def _save(self) -> None:
        if self.file is None:
            return
        unfinished = self.file.with_name(f"{self.file.name}.tmp")
        unfinished.write_text(json.dumps({"made_with": self.made_with, "cases": self.known}, indent=1), "utf-8")
        os.replace(unfinished, self.file)
