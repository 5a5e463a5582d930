"""Signatures read from source text: what a `_target_` accepts, found without importing anything heavy.

Importing torch and Lightning takes eight seconds; a misspelt key should be answered in one. So the callable behind a
dotted name is located on disk and its parameters are read with `ast`, through re-exports and base classes.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Signature:
    """Parameters of a callable: name -> annotation source text ('' without one), and whether it takes **kwargs."""

    parameters: dict[str, str] = field(default_factory=dict)
    open_ended: bool = False
    nested: dict[str, str] = field(default_factory=dict)  # parameter -> dotted name of the dataclass that describes it
    required: frozenset[str] = frozenset()  # parameters without a default


@cache
def module_file(dotted: str) -> Path | None:
    """The source file of a module, without importing its parent packages."""
    top, *rest = dotted.split(".")
    spec = importlib.util.find_spec(top) if top not in sys.modules else sys.modules[top].__spec__
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):  # built in or frozen
        return None
    if not rest:
        return Path(spec.origin)
    base = Path(spec.origin).parent.joinpath(*rest)
    return next((p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file()), None)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def find_definition(
    module: str, name: str, depth: int = 0, kinds: tuple[type, ...] = (ast.ClassDef, ast.FunctionDef)
) -> tuple[str, Any] | None:
    """(module, node) of the class or function `name` visible in `module`, following re-exports."""
    path = module_file(module)
    if path is None or depth > 12:
        return None
    statements = list(_statements(_tree(path).body))
    for node in statements:
        names = [node.name] if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
        if isinstance(node, ast.Assign):
            names = [ast.unparse(target) for target in node.targets]
        if isinstance(node, kinds) and name in names:
            return module, node
    for node in statements:
        if isinstance(node, ast.ImportFrom):
            source = _absolute(module, path, node)
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find_definition(source, alias.name, depth + 1, kinds)
    return None


def _statements(body: list[ast.stmt]):
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)
            yield from _statements(node.orelse)


def _absolute(module: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    return ".".join(package[: len(package) - node.level + 1] + ([node.module] if node.module else []))


def split_target(target: str) -> tuple[str, str]:
    """`a.b.C` -> (`a.b`, `C`); `a.b.C.method` is not used in this house."""
    module, _, name = target.rpartition(".")
    return module, name


def class_attribute(target: str, attribute: str) -> str | None:
    """Name assigned to a class attribute in the class body or a base's, e.g. `batch_type = AudioBatch`."""
    found = find_definition(*split_target(target))
    if found is None or not isinstance(found[1], ast.ClassDef):
        return None
    module, node = found
    value: ast.expr | None
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            names, value = [t.id for t in statement.targets if isinstance(t, ast.Name)], statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names, value = [statement.target.id], statement.value
        else:
            continue
        if attribute in names and value is not None:
            return ast.unparse(value).rpartition(".")[2]
    for base in node.bases:
        inherited = class_attribute(f"{module}.{ast.unparse(base).rpartition('.')[2]}", attribute)
        if inherited:
            return inherited
    return None


def class_module(target: str) -> str | None:
    """The module in which a class is defined, "" for anything but a class, None for what is not found."""
    found = find_definition(*split_target(target))
    if found is None:
        return None
    return found[0] if isinstance(found[1], ast.ClassDef) else ""


@cache
def signature_of(target: str) -> Signature | None:
    """Signature of the class or function at a dotted name; None when its source cannot be found."""
    found = find_definition(*split_target(target))
    return None if found is None else _signature(*found)


def _signature(module: str, node: ast.ClassDef | ast.FunctionDef) -> Signature:
    if isinstance(node, ast.FunctionDef):
        return _from_arguments(module, node.args, skip_first=False)
    inherited = [s for s in (_base_signature(module, b) for b in node.bases) if s is not None]
    if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        own, base = _from_fields(module, node), inherited[0] if inherited else Signature()
        required = (base.required - own.parameters.keys()) | own.required
        return Signature(base.parameters | own.parameters, base.open_ended, base.nested | own.nested, required)
    init = next((s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"), None)
    if init is None:
        return inherited[0] if inherited else Signature()
    own = _from_arguments(module, init.args, skip_first=True)
    if not own.open_ended or not inherited or not inherited[0].parameters:
        return own
    # **kwargs goes to the base class as a rule, so what the base accepts is what is legal; a base that takes nothing
    # (WandbLogger's) means that they go somewhere else.
    base = inherited[0]
    return Signature(base.parameters | own.parameters, base.open_ended, base.nested | own.nested, own.required)


def _base_signature(module: str, base: ast.expr) -> Signature | None:
    found = find_definition(module, ast.unparse(base).rpartition(".")[2])
    return None if found is None else _signature(*found)


def _from_arguments(module: str, args: ast.arguments, skip_first: bool) -> Signature:
    positional = [*args.posonlyargs, *args.args][1 if skip_first else 0 :]
    optional = {a.arg for a in positional[len(positional) - len(args.defaults) :]} if args.defaults else set()
    optional |= {a.arg for a, value in zip(args.kwonlyargs, args.kw_defaults, strict=True) if value is not None}
    pairs = [(a.arg, a.annotation) for a in [*positional, *args.kwonlyargs]]
    return _build(module, pairs, args.kwarg is not None, {a.arg for a in [*positional, *args.kwonlyargs]} - optional)


def _from_fields(module: str, node: ast.ClassDef) -> Signature:
    fields = [
        (s.target.id, s)
        for s in node.body
        if isinstance(s, ast.AnnAssign)
        and isinstance(s.target, ast.Name)
        and "ClassVar" not in ast.unparse(s.annotation)
    ]
    pairs: list[tuple[str, ast.expr | None]] = [(name, s.annotation) for name, s in fields]
    return _build(module, pairs, False, {name for name, s in fields if s.value is None})


class _Aliases(ast.NodeTransformer):
    """Replace names such as `PositiveInt = Annotated[int, "> 0"]` by what they stand for."""

    def __init__(self, module: str) -> None:
        self.module = module

    def visit_Name(self, node: ast.Name) -> ast.expr:
        found = find_definition(self.module, node.id, kinds=(ast.Assign,))
        if found is None or not isinstance(found[1].value, ast.Subscript | ast.BinOp):
            return node
        return _Aliases(found[0]).visit(deepcopy(found[1].value))


def _build(module: str, pairs: list[tuple[str, ast.expr | None]], open_ended: bool, required: set[str]) -> Signature:
    parameters, nested = {}, {}
    for name, annotation in pairs:
        text = ast.unparse(_Aliases(module).visit(deepcopy(annotation))) if annotation is not None else ""
        parameters[name] = text.strip("'\"")
        for part in parameters[name].split("|"):
            found = find_definition(module, part.strip()) if part.strip().isidentifier() else None
            if found and isinstance(found[1], ast.ClassDef) and found[1].decorator_list:
                nested[name] = f"{found[0]}.{found[1].name}"
    return Signature(parameters, open_ended, nested, frozenset(required))
