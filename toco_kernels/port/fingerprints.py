"""What a function is, apart from how it is written: the fingerprint of its normalised syntax tree.

Comments, docstrings, annotations, formatting, the function's own name and its local names make no difference. Names of
parameters and defaults do, since callers rely on them. A name from elsewhere stands for what it means: an imported one
for where it comes from, however it is spelled here; a helper of the same file for the helper's own fingerprint, so that
a changed helper changes all who call it; a constant for everything that the file assigns to it, functions with a
`global` statement included. Fingerprints are the same under every Python that runs this package.
"""

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SCOPES = (*DEFINITIONS, ast.Lambda, *COMPREHENSIONS)  # names bound inside of these mean nothing outside

BLOCKS = {"body", "orelse", "finalbody", "handlers", "cases"}

# Fields of a function that are evaluated where it is defined.
OUTSIDE = {"decorator_list", "defaults", "kw_defaults"}

# Fields that say nothing about what is computed, or that only some versions of Python know.
SILENT = {
    "annotation",
    "ctx",
    "kind",
    "returns",
    "simple",
    "type_comment",
    "type_ignores",
    "type_params",
}


@dataclass(frozen=True)
class Recognisable:
    """A function or class at the top of a file."""

    name: str
    fingerprint: str
    uses: frozenset[str]  # modules that it, or a helper of it, imports from
    node: Definition


def definitions(tree: ast.Module) -> list[Recognisable]:
    """The functions and classes at the top of a file, each under the name by which it can be imported.

    Of several with one name the last counts, as for Python, and none if something else takes the name afterwards.
    """
    file, last = _File(tree), {}
    for node in tree.body:
        if isinstance(node, DEFINITIONS):
            last[node.name] = node
        else:
            for name in _bound(node):
                last.pop(name, None)
    return [Recognisable(name, *file.of(node), node) for name, node in last.items()]


def imported_names(tree: ast.Module) -> dict[str, str]:
    """The names that a file imports, and where from: `np` numpy, `F` torch.nn.functional."""
    names = {}
    for node in _statements(tree.body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            names |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
    return names


class _File:
    """What the names at the top of a file mean."""

    def __init__(self, tree: ast.Module):
        self.imports = imported_names(tree)
        self.meanings: dict[str, list[ast.AST]] = {}  # name here -> what defines it
        self.known: dict[ast.AST, tuple[str, frozenset[str]]] = {}
        self.underway: list[ast.AST] = []
        statements = list(_statements(tree.body))
        for node in statements:
            if isinstance(node, DEFINITIONS):
                self.meanings[node.name] = [node]
            elif not isinstance(node, (ast.Import, ast.ImportFrom)):
                self._assigned(node)
        for node in statements:
            if isinstance(node, DEFINITIONS):
                for name in sorted({name for x in ast.walk(node) if isinstance(x, ast.Global) for name in x.names}):
                    self.meanings.setdefault(name, []).append(node)

    def _assigned(self, node: ast.stmt) -> None:
        """Note what a statement at the top of the file makes of the names that it binds."""
        if isinstance(node, ast.AnnAssign):
            if node.value is None:
                return
            node = ast.Assign(targets=[node.target], value=node.value)
        plain = isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets)
        if not plain:  # a, b = …; a += …; for a in …: of these without what is in their blocks
            node = type(node)(**{name: field for name, field in ast.iter_fields(node) if name not in BLOCKS})
        for name in dict.fromkeys(_bound(node)):
            self.meanings.setdefault(name, []).append(node.value if plain else node)

    def of(self, node: Definition) -> tuple[str, frozenset[str]]:
        """The fingerprint of a definition, and the modules it uses."""
        if node not in self.known:
            self.underway.append(node)
            text = _Text(self)
            fingerprint = hashlib.sha256(text.whole(node).encode()).hexdigest()[:16]
            self.known[node] = fingerprint, frozenset(text.uses)
            self.underway.pop()
        return self.known[node]

    def meaning(self, name: str, text: "_Text") -> str:
        """A name from outside of a definition, as text."""
        meanings = [self._value(node, text) for node in self.meanings.get(name, [])]
        if name in self.imports:
            text.uses.add(self.imports[name].rpartition(".")[0] or self.imports[name])
            meanings.insert(0, f"<{self.imports[name]}>")
        return "|".join(meanings) or f"<{name}>"

    def _value(self, node: ast.AST, text: "_Text") -> str:
        if node in self.underway:
            return f"<recursive {len(self.underway) - self.underway.index(node)}>"
        if isinstance(node, DEFINITIONS):
            fingerprint, uses = self.of(node)
            text.uses |= uses
            return fingerprint
        self.underway.append(node)
        value = _Text(self)
        result = value.of(node)
        self.underway.pop()
        text.uses |= value.uses
        return result


class _Text:
    """One definition written down in one way, whatever it was written like."""

    def __init__(self, file: _File):
        self.file = file
        self.numbers: dict[str, int] = {}  # of local names, in the order of their appearance
        self.scopes: list[set[str]] = []  # the names of each function around, the innermost last
        self.uses: set[str] = set()

    def whole(self, node: Definition) -> str:
        """A definition without its name. Every method of a class has local names of its own."""
        if not isinstance(node, ast.ClassDef):
            return self.of(node)
        parts = [self.of(x) for x in (*node.decorator_list, *node.bases, *node.keywords)]
        for statement in node.body:
            if isinstance(statement, DEFINITIONS):
                inner = _Text(self.file)
                parts.append(f"{statement.name}:{inner.whole(statement)}")
                self.uses |= inner.uses
            elif not _is_silent(statement):
                parts.append(self.of(statement))
        return f"class({','.join(parts)})"

    def of(self, value: object) -> str:
        """A node, a list of nodes, or a constant."""
        if isinstance(value, list):
            return f"[{','.join(self.of(x) for x in value if not _is_silent(x))}]"
        if not isinstance(value, ast.AST):
            return repr(value)
        if isinstance(value, ast.Name):
            return self.name(value.id)
        if isinstance(value, ast.Attribute):
            return self.attribute(value)
        if isinstance(value, ast.AnnAssign):  # x: int = 1 is x = 1
            value = ast.Assign(targets=[value.target], value=value.value)
        if isinstance(value, ast.arg):
            return f"arg({value.arg},{self.name(value.arg)})"
        if isinstance(value, SCOPES):
            self.scopes.append(set(_bound(value)))
        fields = [
            f"{name}={self.field(name, field)}"
            for name, field in ast.iter_fields(value)
            if name not in SILENT and not (name == "name" and isinstance(value, (*DEFINITIONS, ast.ExceptHandler)))
            if field is not None and field != []
        ]
        if isinstance(value, SCOPES):
            self.scopes.pop()
        return f"{type(value).__name__}({','.join(fields)})"

    def field(self, name: str, value: object) -> str:
        """One field of a node. What is evaluated outside of a function does not know its local names."""
        if name not in OUTSIDE:
            return self.of(value)
        inside, self.scopes = self.scopes, self.scopes[:-1]
        text = self.of(value)
        self.scopes = inside
        return text

    def name(self, name: str) -> str:
        """A local name by its number, another by what it means."""
        if any(name in scope for scope in self.scopes):
            return f"%{self.numbers.setdefault(name, len(self.numbers))}"
        return self.file.meaning(name, self)

    def attribute(self, node: ast.Attribute) -> str:
        """`F.relu`, with F imported, is where it comes from; any other attribute is what it is."""
        value = self.of(node.value)
        if value.startswith("<") and value.endswith(">"):
            self.uses.add(value[1:-1])
            return f"<{value[1:-1]}.{node.attr}>"
        return f"{value}.{node.attr}"


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a file that run when it is imported, also those under `if`, `try` and `with`."""
    for node in body:
        yield node
        if not isinstance(node, DEFINITIONS):
            for name in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that a function, or a statement, binds in its own scope."""
    inside, todo = [], list(ast.iter_child_nodes(node))
    for x in todo:
        inside.append(x)
        if not isinstance(x, SCOPES):
            todo.extend(ast.iter_child_nodes(x))
    outside = {name for x in inside if isinstance(x, ast.Global) for name in x.names}
    for x in inside:
        name = None
        if isinstance(x, ast.Name) and isinstance(x.ctx, (ast.Store, ast.Del)):
            name = x.id
        elif isinstance(x, ast.arg):
            name = x.arg
        elif isinstance(x, (*DEFINITIONS, ast.ExceptHandler)):
            name = x.name
        elif isinstance(x, ast.alias):
            name = x.asname or x.name.split(".")[0]
        if name and name not in outside:
            yield name


def _is_silent(node: object) -> bool:
    """Whether a statement does nothing: a docstring or another lonely constant, `pass`, a bare annotation."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Pass) or (isinstance(node, ast.AnnAssign) and node.value is None)
