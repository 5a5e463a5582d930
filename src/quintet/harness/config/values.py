"""Compare values of a configuration with the annotations of the arguments that they are for.

Annotations are source text (signature.py), so nothing has to be imported: `int | None`, `Literal["a", "b"]`,
`list[int]`, `Annotated[float, "> 0"]`. An annotation that is not understood (a class, say) accepts every value.
"""

from __future__ import annotations

import ast
import operator
from functools import cache
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "complex": (int, float), "bool": (bool,), "str": (str,), "Path": (str,),
    "list": (list,), "tuple": (list,), "Sequence": (list, str), "dict": (dict,), "Mapping": (dict,),
}  # fmt: skip
RANGES = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def mismatch(annotation: str, value: Any) -> str | None:
    """What `value` should be instead ("must be int | None, not str"); None where it fits."""
    if not annotation or (isinstance(value, str) and "${" in value):
        return None
    node = _parsed(annotation)
    problem = _outside(node, value)
    if problem or _fits(node, value):
        return problem
    choices = [c for part in _parts(node) if _name(part) == "Literal" for c in _arguments(part)]
    if choices and not isinstance(value, dict | list):
        return f"must be one of {', '.join(str(ast.literal_eval(choice)) for choice in choices)}"
    return f"must be {_readable(node)}, not {'null' if value is None else type(value).__name__}"


@cache
def _parsed(annotation: str) -> ast.expr:
    return ast.parse(annotation, mode="eval").body


def _name(node: ast.expr) -> str:
    outer = node.value if isinstance(node, ast.Subscript) else node
    return ast.unparse(outer).rpartition(".")[2]


def _arguments(node: ast.expr) -> list[ast.expr]:
    if not isinstance(node, ast.Subscript):
        return []
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _parts(node: ast.expr) -> list[ast.expr]:
    """The members of a union, or the annotation itself."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):  # a quoted annotation
        return _parts(_parsed(node.value))
    if isinstance(node, ast.BinOp):
        return _parts(node.left) + _parts(node.right)
    if _name(node) in ("Optional", "Union"):
        none = [ast.Constant(None)] if _name(node) == "Optional" else []
        return [*none, *(part for argument in _arguments(node) for part in _parts(argument))]
    if _name(node) == "Annotated":
        return _parts(_arguments(node)[0])
    return [node]


def _fits(node: ast.expr, value: Any) -> bool:
    return any(_fits_one(part, value) for part in _parts(node))


def _fits_one(node: ast.expr, value: Any) -> bool:
    if isinstance(node, ast.Constant):
        return node.value is None and value is None
    name, arguments = _name(node), _arguments(node)
    if name == "Literal":
        return any(ast.literal_eval(a) == value and type(ast.literal_eval(a)) is type(value) for a in arguments)
    if name not in TYPES:
        return True
    if not isinstance(value, TYPES[name]) or (isinstance(value, bool) and name != "bool"):
        return False
    if isinstance(value, list) and arguments:
        if name == "tuple" and not any(ast.unparse(a) == "..." for a in arguments):
            return len(arguments) == len(value) and all(map(_fits, arguments, value))
        return all(mismatch(ast.unparse(arguments[0]), inner) is None for inner in value)
    return True


def _outside(node: ast.expr, value: Any) -> str | None:
    """The limit of an `Annotated[int, ">= 0"]` that a number breaks."""
    if isinstance(node, ast.BinOp):
        return _outside(node.left, value) or _outside(node.right, value)
    if _name(node) != "Annotated" or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    limits = [ast.literal_eval(limit) for limit in _arguments(node)[1:]]
    for limit in limits:
        sign, bound = limit.split()
        if not RANGES[sign](value, float(bound)):
            return f"must be {' and '.join(limits)}"
    return None


def _readable(node: ast.expr) -> str:
    return " | ".join(dict.fromkeys(ast.unparse(part) for part in _parts(node)))
