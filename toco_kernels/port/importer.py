"""Replacement at import: what `run` does to a script and to the modules it imports, in this process and its children.

The syntax tree of a file is changed between reading and compiling: known definitions get a decorator, shims are put in.
Line numbers stay, so tracebacks and debuggers show the file as it is. Nothing is written, no bytecode either.
"""

import ast
import multiprocessing.spawn
import os
import site
import sys
import sysconfig
import types
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from multiprocessing import util
from pathlib import Path

from . import registry
from .analysis import Analysis, analyse
from .shims import added_folders
from .slots import SLOTS, Slot

MAIN = "_toco_kernels_main"  # under this name children import the script


@dataclass(frozen=True)
class Settings:
    """What children inherit."""

    script: str
    trust: bool = False
    also: dict[str, str] = field(default_factory=dict)  # fingerprint -> name of ours
    reports: str = ""  # the folder where children leave their reports

    def __reduce__(self):
        """Unpickled in a child, which happens before anything else there, settings take effect."""
        return _inherit, (self.script, self.trust, self.also, self.reports)


@dataclass
class Changes:
    """What was done to the files of this process, apart from slots."""

    shims: list[tuple[str, int, str]] = field(default_factory=list)  # file, line, why
    left: list[tuple[str, int, str, str]] = field(default_factory=list)  # file, line, name, why
    unmet: set[str] = field(default_factory=set)  # fingerprints of --also that no definition has


CHANGES = Changes()
_settings: Settings | None = None


def install(settings: Settings) -> None:
    """Replace in everything that is imported from now on, and in the children of this process."""
    global _settings
    registry.add(settings.also)
    CHANGES.unmet |= set(settings.also)
    if _settings is None:
        sys.meta_path.insert(0, _Finder())
        _pass_on_to_children()
    _settings = settings


def run_main(script: str, arguments: list[str]) -> None:
    """Run a script as `python script arguments` would, replaced."""
    path = os.path.abspath(script)
    code = _Loader("__main__", path).get_code("__main__")
    main = types.ModuleType("__main__")
    main.__file__ = path
    sys.argv[:] = [script, *arguments]
    if not sys.flags.safe_path:
        sys.path[0] = str(Path(path).resolve().parent)
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


class _Finder(MetaPathFinder):
    """Finds what the other finders find, and has their source files compiled by us."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname == MAIN and _settings is not None:
            return spec_from_file_location(MAIN, _settings.script, loader=_Loader(MAIN, _settings.script))
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if type(spec.loader) is SourceFileLoader and is_theirs(spec.loader.path):
                    spec.loader = _Loader(spec.loader.name, spec.loader.path)
                return spec
        return None


class _Loader(SourceFileLoader):
    """Compiles a changed syntax tree, and never a cached file."""

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def source_to_code(self, data: bytes, path: str, *, _optimize: int = -1) -> types.CodeType:
        try:
            analysis = analyse(data, path)
        except (SyntaxError, ValueError):
            return super().source_to_code(data, path, _optimize=_optimize)  # raises it in Python's own words
        note(analysis, path)
        tree = ast.fix_missing_locations(_Change(analysis, path).visit(analysis.tree))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)


def is_theirs(path: str) -> bool:
    """Whether a file belongs to the user, and not to Python, to an installed package, or to this one."""
    file = Path(path).resolve()
    if not {"site-packages", "dist-packages"}.isdisjoint(file.parts):  # also those of another environment, lent to this
        return False
    return not any(file.is_relative_to(folder) for folder in _INSTALLED)


_INSTALLED = {
    Path(folder).resolve()
    for folder in (
        *sysconfig.get_paths().values(),
        *site.getsitepackages(),
        site.getusersitepackages(),
        Path(__file__).parents[1],
    )
    if Path(folder).resolve() not in (Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve())  # `data`, in a venv
}


def note(analysis: Analysis, path: str) -> None:
    """Keep for the report what is left alone in a file, and what it has."""
    CHANGES.left += [(shown(path), line, name, why) for name, line, why in analysis.left]
    CHANGES.unmet -= analysis.fingerprints


def shown(path: str) -> str:
    """A path as people read it."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


class _Change(ast.NodeTransformer):
    """Puts shims in, and decorators on known definitions."""

    def __init__(self, analysis: Analysis, path: str):
        self.shims = {}
        missing, folders = set(), added_folders(analysis.tree)
        for shim in analysis.shims:
            if shim.is_needed(folders):
                missing.add(shim.replaces)
                self.shims[shim.node] = shim
                CHANGES.shims.append((shown(path), shim.node.lineno, shim.why))
        self.slots = {}
        for match in analysis.matches:
            needs = next(iter(missing & match.found.uses), "")
            slot = Slot(
                match.found.name,
                shown(path),
                match.found.node.lineno,
                match.replacement,
                trusted=_settings is not None and _settings.trust,
                needs=needs,
            )
            self.slots[match.found.node] = slot

    def visit(self, node: ast.AST):
        new = self.generic_visit(node)
        if node in self.shims:
            parsed = ast.parse(self.shims[node].new or "pass")
            body = parsed.body if isinstance(node, ast.stmt) else [parsed.body[0].value]
            for x in [x for statement in body for x in ast.walk(statement)]:
                ast.copy_location(x, node)
            return body if isinstance(node, ast.stmt) else body[0]
        if node in self.slots:
            take = f"__import__({__package__ + '.slots'!r}, fromlist=['SLOTS']).SLOTS[{self.slots[node].index}].take"
            decorator = ast.parse(take, mode="eval").body
            for x in ast.walk(decorator):
                ast.copy_location(x, node)
            new.decorator_list.insert(0, decorator)
        return new


def _inherit(script: str, trust: bool, also: dict[str, str], reports: str) -> Settings:
    """In a child: install, and replace too what a fork server has imported before."""
    from .patch import patch_loaded

    settings = Settings(script, trust, also, reports)
    install(settings)
    patch_loaded(trust)
    _in_child()  # here, since Python calls nobody after a spawn
    return settings


def _pass_on_to_children() -> None:
    """Children by fork have all of this in their memory. Others get it with what they are told to prepare first."""
    prepare = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict:
        data = prepare(name)
        if data.pop("init_main_from_path", None) or data.get("init_main_from_name") == MAIN:
            data["init_main_from_name"] = MAIN  # through our finder
        return {"toco_kernels": _settings} | data

    multiprocessing.spawn.get_preparation_data = get_preparation_data
    util.register_after_fork(CHANGES, _in_child)


def _in_child(_: object = None) -> None:
    """A child by fork counts for itself; every child leaves a report when it ends."""
    from . import report

    for slot in SLOTS:
        slot.calls, slot.seconds = 0, 0.0
    if _settings is not None and _settings.reports:
        util.Finalize(None, report.leave, args=(_settings.reports,), exitpriority=0)
