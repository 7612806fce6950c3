"""What published repositories use and today's libraries no longer have, and what to write instead.

A shim replaces one expression by another, or one import statement by others. It says why, in a comment of the diff.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec


@dataclass(frozen=True)
class Shim:
    """One change of one node."""

    node: ast.expr | ast.stmt
    new: str  # an expression, or statements; empty: none
    why: str
    replaces: str = ""  # a package that may be missing altogether, and without which this is not needed
    provides: str = ""  # the module that the new name is in, which older versions do not have

    def is_needed(self, folders: Sequence[str]) -> bool:
        """Whether this installation needs it. `folders`: where else the file looks for modules."""
        if self.replaces:
            return find_spec(self.replaces) is None and PathFinder.find_spec(self.replaces, folders) is None
        return not self.provides or (find_spec("timm") is not None and find_spec(self.provides) is not None)


# NumPy's names: what to write, and since when the old one is gone.
_BUILTIN = {name: name for name in ("float", "int", "object", "str", "complex")} | {"unicode": "str"}
_RENAMED = {
    "float_": "float64",
    "complex_": "complex128",
    "string_": "bytes_",
    "unicode_": "str_",
    "bool8": "bool_",
    "round_": "round",
    "Inf": "inf",
    "Infinity": "inf",
    "infty": "inf",
    "NaN": "nan",
    "product": "prod",
    "cumproduct": "cumprod",
    "alltrue": "all",
    "sometrue": "any",
    "in1d": "isin",
    "row_stack": "vstack",
}

_PILLOW = {"ANTIALIAS": "LANCZOS", "CUBIC": "BICUBIC", "LINEAR": "BILINEAR"}

_TIMM = {
    "timm.models.layers": "timm.layers",
    "timm.models.helpers": "timm.models",
    "timm.models.registry": "timm.models",
}

_CRF = ("unary_from_softmax", "unary_from_labels")


def shims(tree: ast.Module, imports: dict[str, str]) -> Iterator[Shim]:
    """All that can be done about a file.

    Args:
        tree: the file.
        imports: the names that it imports, and where from (`np`: `numpy`).
    """
    wrapped = {id(x) for node in ast.walk(tree) if isinstance(node, ast.Call) for x in node.args}
    needs_crf = crf_without_counterpart(tree) is not None
    for node in ast.walk(tree):
        if needs_crf and _is_crf(node):  # half of pydensecrf and half of ours do not go together
            continue
        if isinstance(node, ast.Attribute):
            yield from _numpy_name(node, imports)
            yield from _filter_name(node, imports)
        elif isinstance(node, ast.Call):
            yield from _local_rank(node, imports)
            yield from _device(node, imports)
            if id(node) not in wrapped:
                yield from _score(node, imports)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from _import_from(node, tree)
        elif isinstance(node, ast.Import) and len(node.names) == 1:
            yield from _import(node)


def crf_without_counterpart(tree: ast.Module) -> ast.ImportFrom | None:
    """The statement, if there is one, that imports from pydensecrf what is not in toco_kernels.numpy."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_crf(node) and not {alias.name for alias in node.names} <= set(_CRF):
            return node
    return None


def _is_crf(node: ast.AST) -> bool:
    """Whether a node imports pydensecrf."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "pydensecrf.utils" and node.level == 0
    return isinstance(node, ast.Import) and any(alias.name.startswith("pydensecrf.") for alias in node.names)


def added_folders(tree: ast.Module) -> list[str]:
    """The folders that a file adds to `sys.path` as it is imported."""
    return [
        x.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.path.append", "sys.path.insert")
        for x in node.args
        if isinstance(x, ast.Constant) and isinstance(x.value, str)
    ]


def dotted(node: ast.expr, imports: dict[str, str]) -> str:
    """`np.random.rand` as numpy.random.rand; empty for what is no imported name."""
    if isinstance(node, ast.Name):
        return imports.get(node.id, "")
    if isinstance(node, ast.Attribute) and (parent := dotted(node.value, imports)):
        return f"{parent}.{node.attr}"
    return ""


def _numpy_name(node: ast.Attribute, imports: dict[str, str]) -> Iterator[Shim]:
    if dotted(node.value, imports) != "numpy":
        return
    if node.attr in _BUILTIN:
        yield Shim(node, _BUILTIN[node.attr], f"NumPy 1.24 removed numpy.{node.attr}, which was Python's own")
    elif node.attr == "bool":  # NumPy 2 has one again, which is no longer Python's
        yield Shim(
            node, f"{ast.unparse(node.value)}.bool_", "NumPy 1.24 removed numpy.bool; this one is in all of them"
        )
    elif node.attr in _RENAMED:
        new = f"{ast.unparse(node.value)}.{_RENAMED[node.attr]}"
        yield Shim(node, new, f"NumPy 2 removed numpy.{node.attr}")


def _filter_name(node: ast.Attribute, imports: dict[str, str]) -> Iterator[Shim]:
    if node.attr in _PILLOW and dotted(node.value, imports) == "PIL.Image":
        new = f"{ast.unparse(node.value)}.{_PILLOW[node.attr]}"
        yield Shim(node, new, f"Pillow 10 removed Image.{node.attr}, another name of {_PILLOW[node.attr]}")


def _local_rank(node: ast.Call, imports: dict[str, str]) -> Iterator[Shim]:
    """`add_argument("--local_rank", default=-1)`: torchrun passes no such argument, it sets a variable."""
    if not isinstance(node.func, ast.Attribute) or node.func.attr != "add_argument" or imports.get("torch") != "torch":
        return
    names = [x.value for x in node.args if isinstance(x, ast.Constant)]
    if "--local_rank" in names or "--local-rank" in names:
        for keyword in node.keywords:
            number = isinstance(keyword.value, (ast.Constant, ast.UnaryOp))
            if keyword.arg == "default" and number:
                new = f"torch.distributed.get_node_local_rank({ast.unparse(keyword.value)})"
                yield Shim(keyword.value, new, _WHY_RANK)
        if not any(keyword.arg in ("default", "required", None) for keyword in node.keywords):
            default = ast.keyword("default", ast.parse("torch.distributed.get_node_local_rank(-1)", mode="eval").body)
            new = ast.Call(node.func, node.args, [*node.keywords, default])
            yield Shim(node, ast.unparse(new), _WHY_RANK)


_WHY_RANK = "torchrun passes no --local_rank, it sets the variable LOCAL_RANK"


def _device(node: ast.Call, imports: dict[str, str]) -> Iterator[Shim]:
    """`torch.device(args.local_rank)`, which is -1 without a launcher."""
    if dotted(node.func, imports) == "torch.device" and len(node.args) == 1 and not node.keywords:
        (rank,) = node.args
        if isinstance(rank, ast.Attribute) and rank.attr == "local_rank":
            why = "torch.device(-1) is an error, and without a launcher the rank is -1"
            yield Shim(rank, f"max({ast.unparse(rank)}, 0)", why)


def _score(node: ast.Call, imports: dict[str, str]) -> Iterator[Shim]:
    """`f1_score(…)`, whose callers take `.item()` of it."""
    numpy = next((name for name, origin in imports.items() if origin == "numpy"), None)
    if numpy and dotted(node.func, imports) == "sklearn.metrics.f1_score":
        why = "scikit-learn returns a float of Python's now, which has no item()"
        yield Shim(node, f"{numpy}.float64({ast.unparse(node)})", why)


def _import(node: ast.Import) -> Iterator[Shim]:
    (alias,) = node.names
    if alias.name in ("pydensecrf.densecrf", "pydensecrf.utils") and alias.asname:
        yield Shim(node, f"import toco_kernels.numpy as {alias.asname}", _WHY_CRF, "pydensecrf")


_WHY_CRF = "pydensecrf does not build under today's Python; the same lattice, without building anything"


def _import_from(node: ast.ImportFrom, tree: ast.Module) -> Iterator[Shim]:
    names = [alias.name for alias in node.names]
    spelled = ", ".join(alias.name + (f" as {alias.asname}" if alias.asname else "") for alias in node.names)
    if node.module == "bilateralfilter" and set(names) <= {"bilateralfilter", "bilateralfilter_batch"}:
        why = "the extension bilateralfilter needs a build of its own; the same filter, without it"
        yield Shim(node, f"from toco_kernels.compat import {spelled}", why, "bilateralfilter")
    elif _is_crf(node):
        yield Shim(node, f"from toco_kernels.numpy import {spelled}", _WHY_CRF, "pydensecrf")
    elif node.module in _TIMM:
        why = f"timm moved {node.module} to {_TIMM[node.module]}"
        yield Shim(node, f"from {_TIMM[node.module]} import {spelled}", why, provides=_TIMM[node.module])
    elif node.module == "numpy.lib.utils" and not _is_used(tree, node):
        yield Shim(node, "", f"NumPy 2 removed numpy.lib.utils; {names[0]} was not used here")
    elif node.module == "pkg_resources" and spelled == "packaging":
        yield Shim(node, "import packaging.version", "setuptools no longer brings pkg_resources with packaging in it")


def _is_used(tree: ast.Module, node: ast.ImportFrom) -> bool:
    """Whether any name that a statement imports is used in the file."""
    names = {alias.asname or alias.name for alias in node.names}
    return any(isinstance(x, ast.Name) and x.id in names for x in ast.walk(tree))
