"""Applies declared edits to a Python source, keeping its formatting and comments."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from . import patterns
from .edit import Edit, PatchError, Require


def patch(source: str, edits: Sequence[Edit]) -> str:
    """Apply ``edits`` to ``source``, all or none.

    Raises:
        PatchError: An anchor is missing or there twice, a name that an edit uses is not defined before it, two edits
            are at one place, or the source or the result is not valid Python.
    """
    try:
        module = cst.parse_module(source)
        finder = _Finder(module, edits)
        module.visit(finder)
        problems = list(_misplaced(edits, finder.found)) or list(_undefined(source, edits, finder.found))
        if problems:
            raise PatchError("; ".join(problems))
        changed = module.visit(_Applier(edits, finder.found))
        assert isinstance(changed, cst.Module)
        ast.parse(changed.code)
    except cst.ParserSyntaxError as error:
        raise PatchError(f"not valid Python: line {error.raw_line}") from None
    except (SyntaxError, cst.CSTValidationError) as error:
        raise PatchError(f"not valid Python: {str(error).splitlines()[0]}") from None
    return changed.code


def lines_of(source: str, edits: Sequence[Edit]) -> list[list[int]]:
    """First lines of the places that the anchor of each edit fits.

    Raises:
        PatchError: The source is not valid Python.
    """
    try:
        module = cst.parse_module(source)
    except cst.ParserSyntaxError as error:
        raise PatchError(f"not valid Python: line {error.raw_line}") from None
    finder = _Finder(module, edits)
    module.visit(finder)
    return [[place.first_line for place in places] for places in finder.found]


@dataclass(frozen=True)
class _Place:
    """A node that means the same as an anchor, its lines, and the functions that hold it."""

    node: cst.CSTNode
    first_line: int
    last_line: int
    functions: tuple[str, ...]


class _Finder(cst.CSTVisitor):
    """Lists, for each edit, the places that its anchor means."""

    def __init__(self, module: cst.Module, edits: Sequence[Edit]) -> None:
        super().__init__()
        self._module, self._edits = module, edits
        self._patterns = [(edit.pattern, _statement(edit.followed_by)) for edit in edits]
        self._lines = MetadataWrapper(module, unsafe_skip_copy=True).resolve(PositionProvider)
        self._functions: list[str] = []
        self._next: dict[int, cst.CSTNode] = {}
        self.found: list[list[_Place]] = [[] for _ in edits]

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.IndentedBlock | cst.Module):
            self._next |= {id(one): two for one, two in pairwise(node.body)}
        start = self._lines[node].start if node in self._lines else None
        here = (start.line, start.column) if start is not None else None
        possible = [index for index, edit in enumerate(self._edits) if edit.at in (None, here)]
        meaning = _meaning(self._module, node) if possible else None
        if meaning is not None:
            for index in possible:
                self._try(index, node, meaning)
        if isinstance(node, cst.FunctionDef):
            self._functions.append(node.name.value)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef):
            self._functions.pop()

    def _try(self, index: int, node: cst.CSTNode, meaning: ast.AST) -> None:
        edit, (pattern, following) = self._edits[index], self._patterns[index]
        inside = not edit.within or edit.within in self._functions
        if inside and patterns.matches(pattern, meaning) and self._is_followed(node, following):
            self.found[index].append(
                _Place(node, self._lines[node].start.line, self._lines[node].end.line, tuple(self._functions))
            )

    def _is_followed(self, node: cst.CSTNode, pattern: ast.stmt | None) -> bool:
        if pattern is None:
            return True
        following = self._next.get(id(node))
        meaning = _meaning(self._module, following) if following is not None else None
        return meaning is not None and patterns.matches(pattern, meaning)


class _Applier(cst.CSTTransformer):
    def __init__(self, edits: Sequence[Edit], found: Sequence[Sequence[_Place]]) -> None:
        super().__init__()
        self._edits = {id(place.node): edit for edit, places in _changing(edits, found) for place in places}

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        edit = self._edits.get(id(original_node))
        return updated_node if edit is None else edit.apply(updated_node)


def _changing(edits: Sequence[Edit], found: Sequence[Sequence[_Place]]) -> Iterator[tuple[Edit, Sequence[_Place]]]:
    for edit, places in zip(edits, found, strict=True):
        if not isinstance(edit, Require):
            yield edit, places


def misplaced(edit: Edit, number: int) -> str:
    """What is wrong with an edit whose anchor fits so many places."""
    count = f"{number} places" if number else "nothing"
    where = f"{edit.within}()" if edit.within else "the script"
    after = f" followed by `{edit.followed_by}`" if edit.followed_by else ""
    return f"{count} in {where} like `{edit.anchor}`{after}"


def _misplaced(edits: Sequence[Edit], found: Sequence[Sequence[_Place]]) -> Iterator[str]:
    """Anchors that fit no place or several, and places that two edits want."""
    for edit, places in zip(edits, found, strict=True):
        if len(places) != 1 and not edit.optional:
            yield misplaced(edit, len(places))
    taken: set[int] = set()
    for edit, places in _changing(edits, found):
        nodes = {id(place.node) for place in places}
        if taken & nodes:
            yield f"two edits at `{edit.anchor}`; make them one"
        taken |= nodes


def _statement(code: str) -> ast.stmt | None:
    return ast.parse(code).body[0] if code else None


def _meaning(module: cst.Module, node: cst.CSTNode) -> ast.AST | None:
    """The syntax tree of a statement or call; None for other nodes, and for a line of several statements."""
    if isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
        body = ast.parse(module.code_for_node(node)).body
        return body[0] if len(body) == 1 else None
    if isinstance(node, cst.Call | cst.BinaryOperation | cst.Comparison | cst.Subscript):
        return ast.parse(f"(\n{module.code_for_node(node)}\n)", mode="eval").body
    return None


def _undefined(source: str, edits: Sequence[Edit], found: Sequence[Sequence[_Place]]) -> Iterator[str]:
    """Names that an edit uses where the script has not defined them: they would fail in the middle of a training."""
    tree = ast.parse(source)
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    top = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    shared = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    shared |= vars(builtins).keys() | functions.keys() | classes | _bound(top)
    for edit, places in zip(edits, found, strict=True):
        inserted = _bound([ast.parse(other.uses) for other in edits if other is not edit])
        for place in places:
            holding = [functions[name] for name in place.functions]
            missing = _read(ast.parse(edit.uses).body) - shared - inserted - _bound(holding, until=place.last_line)
            if missing:
                where = f"{place.functions[-1]}()" if place.functions else "the script"
                yield f"no definition of {', '.join(sorted(missing))} in {where} before `{edit.anchor}`"


def _bound(nodes: Sequence[ast.AST], until: float = float("inf")) -> set[str]:
    """Names that the nodes bind up to a line: variables, parameters and imports."""
    names = set()
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if getattr(node, "lineno", 0) > until:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names


def _read(statements: Sequence[ast.stmt]) -> set[str]:
    """Names that statements read before they bind them."""
    read: set[str] = set()
    bound: set[str] = set()
    for statement in statements:
        inner = [getattr(statement, field, []) for field in ("body", "orelse", "finalbody")]
        nested = {id(node) for block in inner for child in block for node in ast.walk(child)}
        own = [node for node in ast.walk(statement) if id(node) not in nested]
        local = _bound([node for node in own if isinstance(node, ast.comprehension | ast.arguments)])
        names = {node.id for node in own if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        read |= names - bound - local
        bound |= _bound([node for node in own if isinstance(node, ast.Name | ast.alias)])
        for block in inner:
            read |= _read(block) - bound
            bound |= _bound(block)
    return read
