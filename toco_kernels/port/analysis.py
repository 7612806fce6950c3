"""All that `port` and `run` know about one file."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import registry
from .fingerprints import Recognisable, definitions, imported_names
from .registry import Replacement
from .shims import Shim, crf_without_counterpart, shims


@dataclass(frozen=True)
class Match:
    """A definition that is replaced."""

    found: Recognisable
    replacement: Replacement


@dataclass
class Analysis:
    """One file."""

    tree: ast.Module
    matches: list[Match] = field(default_factory=list)
    shims: list[Shim] = field(default_factory=list)
    left: list[tuple[str, int, str]] = field(default_factory=list)  # name, line, why it is left alone
    fingerprints: set[str] = field(default_factory=set)  # of all definitions

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.matches or self.shims)


def analyse(source: str | bytes, path: str) -> Analysis:
    """What can be replaced in a file.

    Raises:
        SyntaxError: it is not Python, or that of another time.
    """
    analysis = Analysis(ast.parse(source, path))
    bases = set(_base_names(analysis.tree))
    for found in definitions(analysis.tree):
        analysis.fingerprints.add(found.fingerprint)
        replacement = registry.find(found.fingerprint)
        if replacement is None:
            if found.name in registry.NAMES:
                analysis.left.append((found.name, found.node.lineno, registry.unknown(found.fingerprint)))
        elif found.name in bases:
            why = f"known as {replacement.name}, but a class here is derived from it"
            analysis.left.append((found.name, found.node.lineno, why))
        else:
            analysis.matches.append(Match(found, replacement))
    if (node := crf_without_counterpart(analysis.tree)) is not None:
        why = f"no counterpart here for all of {', '.join(alias.name for alias in node.names)}"
        analysis.left.append(("pydensecrf", node.lineno, why))
    analysis.shims = sorted(
        shims(analysis.tree, imported_names(analysis.tree)), key=lambda s: (s.node.lineno, s.node.col_offset)
    )
    return analysis


def _base_names(tree: ast.Module) -> Iterator[str]:
    """The names that classes of a file are derived from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if isinstance(base, ast.Name):
                    yield base.id
