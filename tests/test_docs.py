"""The documentation: a page for every room, and docstrings that survive Markdown. `make check` builds it."""

import ast
import re
from pathlib import Path

import pytest

from toco_kernels import ROOMS

ROOT = Path(__file__).parent.parent
TEXTS = (ast.Module, ast.ClassDef, ast.FunctionDef)
TAG = re.compile(r"<[A-Za-z/!?]")  # Markdown takes `<x, y>` outside of code for HTML, and shows nothing


def tags(docstring):
    """Lines that lose something: formulas are safe where they are indented, or in backticks."""
    lines = docstring.splitlines()
    return [line for line in lines if not line.startswith("    ") and TAG.search(re.sub("`[^`]*`", "", line))]


def docstrings(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, TEXTS):
            yield from tags(ast.get_docstring(node) or "")


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_page(room):
    page = (ROOT / "docs/operators" / f"{room}.md").read_text()
    assert f"::: toco_kernels.{room}\n" in page
    assert f"operators/{room}.md" in (ROOT / "mkdocs.yml").read_text()
    overview = (ROOT / "docs/operators/README.md").read_text()
    assert f"({room}.md)" in overview
    for heading in ("## Complexity", "## How it is tested"):
        assert heading in page


@pytest.mark.parametrize("room", ROOMS)
def test_formulas_survive_markdown(room):
    lost = [line for file in (ROOT / "toco_kernels" / room).glob("[!t]*.py") for line in docstrings(file)]
    assert not lost


def test_a_lost_formula_is_seen():
    assert tags("With x = <t, s> / 2:") == ["With x = <t, s> / 2:"]
    assert not tags("With `x = <t, s>`:\n\n    y = <t, s>\n")
