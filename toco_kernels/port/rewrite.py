"""A file with imports of ours in place of what is known, and the diff of a repository. Formatting stays (LibCST)."""

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from .analysis import Analysis, Match, analyse
from .fingerprints import DEFINITIONS
from .registry import Replacement

LINE = 100  # characters; longer imports go over several lines
SKIPPED = {"__pycache__", "build", "dist", "node_modules", "site-packages", "venv"}  # and all that begin with a dot


@dataclass
class File:
    """One file of a repository, as it is and as it should be."""

    path: Path
    name: str  # relative to the repository
    before: bytes = b""
    after: bytes = b""
    analysis: Analysis | None = None
    problem: str = ""  # why it could not be read
    redirected: list[str] = field(default_factory=list)  # names imported from us now, instead of from another file

    @property
    def is_changed(self) -> bool:
        """Whether there is something to do."""
        return self.after != self.before

    def diff(self) -> str:
        """A unified diff that `git apply` and `patch -p1` take."""
        before, after = (text.decode(errors="surrogateescape").splitlines(True) for text in (self.before, self.after))
        lines = difflib.unified_diff(before, after, f"a/{self.name}", f"b/{self.name}")
        return "".join(x if x.endswith("\n") else f"{x}\n\\ No newline at end of file\n" for x in lines)


def repository(root: Path) -> list[File]:
    """Every Python file under a folder, or the one file given, rewritten. Nothing is written to disk."""
    paths = [root] if root.is_file() else sorted(_python_files(root))
    folder = root.parent if root.is_file() else root
    files = [File(path, path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths]
    for file in files:
        file.after = file.before
        try:
            file.analysis = analyse(file.before, file.name)
        except (SyntaxError, ValueError) as error:  # ValueError: null bytes
            file.problem = f"cannot be parsed: {error}"
    _leave_base_classes(files)
    known = {file.path.resolve(): _by_name(file.analysis) for file in files if file.analysis}
    for file in files:
        if file.analysis:
            redirects = list(_redirects(file, folder.resolve(), known))
            if redirects or not file.analysis.is_empty:
                file.after = _rewritten(file, redirects)
    return files


def _python_files(root: Path) -> Iterator[Path]:
    for path in root.iterdir():
        if path.is_dir() and not path.name.startswith(".") and path.name not in SKIPPED:
            yield from _python_files(path)
        elif path.suffix == ".py" and path.is_file():
            yield path


def _by_name(analysis: Analysis) -> dict[str, Match]:
    return {match.found.name: match for match in analysis.matches}


def _leave_base_classes(files: list[File]) -> None:
    """Classes that another file derives a class of its own from stay as they are."""
    bases = {
        name.rpartition(".")[2]
        for file in files
        if file.analysis
        for node in ast.walk(file.analysis.tree)
        if isinstance(node, ast.ClassDef)
        for name in map(ast.unparse, node.bases)
    }
    for file in files:
        for match in list(file.analysis.matches) if file.analysis else ():
            if isinstance(match.found.node, ast.ClassDef) and match.found.name in bases:
                file.analysis.matches.remove(match)
                why = f"known as {match.replacement.name}, but a class is derived from it"
                file.analysis.left.append((match.found.name, match.found.node.lineno, why))


@dataclass(frozen=True)
class _Change:
    """What becomes of one import statement, or of one expression."""

    node: ast.AST
    new: str
    why: str


def _redirects(file: File, root: Path, known: dict[Path, dict[str, Match]]) -> Iterator[_Change]:
    """Import statements that bring in replaced names from another file, each with what it should say."""
    for node in ast.walk(file.analysis.tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        source = _imported_file(node, file.path.resolve(), root, known)
        theirs = known.get(source, {})
        replaced = [alias for alias in node.names if alias.name in theirs]
        if not replaced:
            continue
        new = _imports([(theirs[alias.name].replacement, alias.asname or alias.name) for alias in replaced])
        rest = [alias for alias in node.names if alias not in replaced]
        if rest:
            new.append(ast.unparse(ast.ImportFrom(node.module, rest, node.level)))
        file.redirected += [alias.asname or alias.name for alias in replaced]
        yield _Change(node, "\n".join(new), "fused, with the published numbers")


def _imports(names: list[tuple[Replacement, str]]) -> list[str]:
    """One statement for each module of ours that these come from, under the names given."""
    modules: dict[str, list[str]] = {}
    for replacement, name in names:
        modules.setdefault(replacement.module, []).append(replacement.spelled(name))
    statements = []
    for module, spelled in modules.items():
        statement = f"from {module} import {', '.join(spelled)}"
        if len(statement) > LINE:
            statement = f"from {module} import (\n" + "".join(f"    {x},\n" for x in spelled) + ")"
        statements.append(statement)
    return statements


def _imported_file(node: ast.ImportFrom, importer: Path, root: Path, known: dict[Path, dict]) -> Path | None:
    """The file that an import statement means, searched from every folder above the importing one."""
    parts = node.module.split(".") if node.module else []
    if node.level:
        places = [importer.parents[node.level - 1]]
    else:
        places = [folder for folder in importer.parents if folder == root or root in folder.parents]
    for place in places:
        for path in (place.joinpath(*parts).with_suffix(".py"), place.joinpath(*parts, "__init__.py")):
            if path in known:
                return path
    return None


def _rewritten(file: File, redirects: list[_Change]) -> bytes:
    """The file's new content."""
    analysis = file.analysis
    gone = [match.found.node for match in analysis.matches]
    inside = {id(node) for definition in gone for node in ast.walk(definition)}
    changed = [_Change(shim.node, shim.new, shim.why) for shim in analysis.shims if id(shim.node) not in inside]
    changed += [change for change in redirects if id(change.node) not in inside]
    lines = file.before.splitlines()
    wrapper = MetadataWrapper(cst.parse_module(file.before))
    return wrapper.visit(_Rewriter(analysis, changed, lines)).bytes


class _Rewriter(cst.CSTTransformer):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, analysis: Analysis, changes: list[_Change], lines: list[bytes]):
        super().__init__()
        self.analysis = analysis
        self.expressions: dict[tuple[int, int, int, int], str] = {}
        self.statements: dict[int, _Change] = {}  # by line
        self.comments: dict[int, list[str]] = {}  # by the line of the statement they explain
        owner = _statement_lines(analysis.tree)
        for change in changes:
            node = change.node
            if isinstance(node, ast.stmt):
                self.statements[node.lineno] = change
            else:
                start = _column(lines, node.lineno, node.col_offset)
                end = _column(lines, node.end_lineno, node.end_col_offset)
                self.expressions[node.lineno, start, node.end_lineno, end] = change.new
                self.comments.setdefault(owner[id(node)], []).append(change.why)

    def leave_Module(self, original_node: cst.Module, updated_node: cst.Module) -> cst.Module:
        """Put imports in place of known definitions. The n-th definition here is the n-th of the syntax tree."""
        definitions = iter([node for node in self.analysis.tree.body if isinstance(node, DEFINITIONS)])
        matches = {match.found.node: match for match in self.analysis.matches}
        body = []
        for statement in updated_node.body:
            match = None
            if isinstance(statement, (cst.FunctionDef, cst.ClassDef)):
                match = matches.get(next(definitions))
            body += [statement] if match is None else _import_of(match, statement)
        return updated_node.with_changes(body=body)

    def on_leave(self, original_node: cst.CSTNode, updated_node: cst.CSTNode):
        """Replace what has changed, and explain it above the statement."""
        updated_node = super().on_leave(original_node, updated_node)
        if isinstance(original_node, cst.BaseExpression) and self.expressions:
            where = self.get_metadata(PositionProvider, original_node)
            key = (where.start.line, where.start.column, where.end.line, where.end.column)
            if key in self.expressions:
                return cst.parse_expression(self.expressions[key])
        if isinstance(original_node, cst.BaseStatement) and hasattr(updated_node, "leading_lines"):
            line = self.get_metadata(PositionProvider, original_node).start.line
            if isinstance(original_node, cst.SimpleStatementLine) and line in self.statements:
                return self._imports(updated_node, self.statements[line])
            if line in self.comments:
                why = _comments(*dict.fromkeys(self.comments.pop(line)))
                return updated_node.with_changes(leading_lines=[*updated_node.leading_lines, *why])
        return updated_node

    def _imports(self, statement: cst.SimpleStatementLine, change: _Change):
        if len(statement.body) > 1:  # import a; import b
            return statement
        leading = [*statement.leading_lines, *_comments(change.why)]
        if not change.new:  # `pass`, since it may be all that its block holds
            return statement.with_changes(body=[cst.Pass()], leading_lines=leading)
        new = [*cst.parse_module(change.new).body]
        new[0] = new[0].with_changes(leading_lines=leading)
        new[-1] = new[-1].with_changes(trailing_whitespace=statement.trailing_whitespace)
        return cst.FlattenSentinel(new)


def _import_of(match: Match, statement: cst.FunctionDef | cst.ClassDef) -> list[cst.SimpleStatementLine]:
    """The import in place of a definition, with what it promises."""
    node, (text,) = match.found.node, _imports([(match.replacement, match.found.name)])
    new = cst.parse_statement(text)
    lines = node.end_lineno - min([node.lineno, *(x.lineno for x in node.decorator_list)]) + 1
    why = f"in place of {lines} lines, fused; {match.replacement.guarantee}"
    return [new.with_changes(leading_lines=[*statement.leading_lines, *_comments(why)])]


def _comments(*reasons: str) -> list[cst.EmptyLine]:
    return [cst.EmptyLine(comment=cst.Comment(f"# toco_kernels: {why}")) for why in reasons]


def _column(lines: list[bytes], line: int, offset: int) -> int:
    """A column in characters, from one in bytes of UTF-8."""
    return len(lines[line - 1][:offset].decode(errors="replace"))


def _statement_lines(tree: ast.Module) -> dict[int, int]:
    """For every node the line at which the innermost statement around it begins."""
    lines: dict[int, int] = {}

    def visit(node: ast.AST, line: int) -> None:
        if isinstance(node, ast.stmt):
            line = min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", ()))])
        lines[id(node)] = line
        for child in ast.iter_child_nodes(node):
            visit(child, line)

    visit(tree, 1)
    return lines
