"""Patterns of Python code: snippets in which ``...`` stands for anything."""

from __future__ import annotations

import ast
from collections.abc import Sequence


def matches(pattern: ast.AST, node: ast.AST) -> bool:
    """Whether ``node`` means the same as ``pattern``, however it is formatted.

    ``...`` stands for one expression, and at the end of a list (arguments, a body) for any number of items.
    ``from module import *`` stands for every import from that module, ``def name(): ...`` for every function of that
    name.
    """
    if _is_anything(pattern):
        return True
    if type(pattern) is not type(node):
        return False
    return all(_same(getattr(pattern, field), getattr(node, field)) for field in _meaningful(pattern))


def _meaningful(pattern: ast.AST) -> Sequence[str]:
    """The fields that a pattern determines."""
    if isinstance(pattern, ast.FunctionDef):
        return ("name",)
    if isinstance(pattern, ast.ImportFrom) and pattern.names[0].name == "*":
        return ("module",)
    skipped = {"ctx", "kind", "type_comment"}
    if isinstance(pattern, ast.Call) and pattern.args and _is_anything(pattern.args[-1]):
        skipped.add("keywords")
    if _ends_open(getattr(pattern, "body", None)):
        skipped.add("orelse")
    return [field for field in pattern._fields if field not in skipped]


def _same(expected: object, found: object) -> bool:
    if isinstance(expected, ast.AST):
        return isinstance(found, ast.AST) and matches(expected, found)
    if isinstance(expected, list):
        return isinstance(found, list) and _same_items(expected, found)
    return type(expected) is type(found) and expected == found


def _same_items(expected: Sequence[object], found: Sequence[object]) -> bool:
    if _ends_open(expected):
        expected = expected[:-1]
        found = found[: len(expected)]
    return len(expected) == len(found) and all(map(_same, expected, found))


def _ends_open(items: object) -> bool:
    return isinstance(items, Sequence) and len(items) > 0 and _is_anything(items[-1])


def _is_anything(node: object) -> bool:
    value = node.value if isinstance(node, ast.Expr) else node
    return isinstance(value, ast.Constant) and value.value is Ellipsis
