"""Applies declared edits to a Python source, keeping its formatting and comments."""

from __future__ import annotations

import ast
import builtins
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile, pairwise
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from . import patterns


class PatchError(Exception):
    """A source that the edits do not fit; the message says what was looked for."""


@dataclass(frozen=True, kw_only=True)
class Edit(ABC):
    """One change, at the one place whose code means the same as ``anchor``.

    Attributes:
        anchor: Pattern of a statement or expression, see :mod:`brpg_lib.adapters.editing.patterns`.
        within: Function that holds the place; empty for anywhere.
        followed_by: Pattern of the statement right after the anchor's, if that matters.
        optional: A fix of an upstream bug: done at every place that needs it, fine if there is none.
        at: Line and column of the one place, where it is known; ``anchor`` then only has to say what is there.
    """

    anchor: str
    within: str = ""
    followed_by: str = ""
    optional: bool = False
    at: tuple[int, int] | None = None

    @property
    def pattern(self) -> ast.AST:
        """What to look for: a statement, or an expression if the anchor is one."""
        (statement,) = ast.parse(self.anchor).body
        return statement.value if isinstance(statement, ast.Expr) else statement

    @property
    def uses(self) -> str:
        """Code whose names the script must define before it."""
        return ""

    @abstractmethod
    def apply(self, node: Any) -> Any:
        """What stands in the place of the anchor's node, as a libcst transformer returns it."""


@dataclass(frozen=True, kw_only=True)
class Require(Edit):
    """Change nothing: the anchor only has to be there, once."""

    def apply(self, node: Any) -> Any:
        """See :class:`Edit`."""
        return node


@dataclass(frozen=True, kw_only=True)
class Before(Edit):
    """Insert statements before the anchor's statement; ``code`` that opens with a blank line keeps it."""

    code: str

    @property
    def pattern(self) -> ast.AST:
        """See :class:`Edit`."""
        (statement,) = ast.parse(self.anchor).body
        return statement

    @property
    def uses(self) -> str:
        """See :class:`Edit`."""
        return self.code

    def apply(self, node: Any) -> Any:
        """See :class:`Edit`."""
        first, *rest = _statements(self.code)
        if not first.leading_lines:  # blank lines above the anchor stay above both; its comments stay with it
            above = list(node.leading_lines)
            comments = list(dropwhile(lambda line: line.comment is None, above))
            first = first.with_changes(leading_lines=above[: len(above) - len(comments)])
            node = node.with_changes(leading_lines=comments)
        return cst.FlattenSentinel([first, *rest, node])


@dataclass(frozen=True, kw_only=True)
class After(Before):
    """Insert statements after the anchor's statement."""

    def apply(self, node: Any) -> Any:
        """See :class:`Edit`."""
        return cst.FlattenSentinel([node, *_statements(self.code)])


@dataclass(frozen=True, kw_only=True)
class Replace(Edit):
    """Put ``code`` in the place of the anchor: statements for a statement, an expression for an expression."""

    code: str

    @property
    def uses(self) -> str:
        """See :class:`Edit`."""
        return self.code

    def apply(self, node: Any) -> Any:
        """See :class:`Edit`."""
        if isinstance(node, cst.BaseExpression):
            return cst.parse_expression(self.code)
        first, *rest = _statements(self.code)
        return cst.FlattenSentinel([first.with_changes(leading_lines=node.leading_lines), *rest])


@dataclass(frozen=True, kw_only=True)
class AddArgument(Edit):
    """Add an argument to the anchor's call, or a parameter to its function.

    Attributes:
        code: The argument, with its keyword if it has one.
        position: Index to insert it at; ``None`` for the end.
    """

    code: str
    position: int | None = None

    def apply(self, node: Any) -> Any:
        """See :class:`Edit`."""
        if isinstance(node, cst.FunctionDef):
            defaults = any(parameter.default is not None for parameter in node.params.params)
            if defaults and "=" not in self.code:
                raise PatchError(f"{node.name.value}() has parameters with defaults; {self.code} cannot follow them")
            made = cst.ensure_type(cst.parse_statement(f"def f({self.code}): pass"), cst.FunctionDef)
            parameters = _with_item(node.params.params, made.params.params[0], self.position)
            return node.with_changes(params=node.params.with_changes(params=parameters))
        by_name = self.position is None and bool(node.args) and _keyword(node.args[-1]) is not None
        code = f"{self.code}={self.code}" if by_name and self.code.isidentifier() else self.code
        added = cst.ensure_type(cst.parse_expression(f"f({code})"), cst.Call).args[0]
        if added.keyword is not None and any(_keyword(argument) == added.keyword.value for argument in node.args):
            return node
        return node.with_changes(args=_with_item(node.args, added, self.position))


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


@dataclass(frozen=True)
class _Place:
    """A node that means the same as an anchor, its lines, and the functions that hold it."""

    node: cst.CSTNode
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
            self.found[index].append(_Place(node, self._lines[node].end.line, tuple(self._functions)))

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


def _misplaced(edits: Sequence[Edit], found: Sequence[Sequence[_Place]]) -> Iterator[str]:
    """Anchors that fit no place or several, and places that two edits want."""
    for edit, places in zip(edits, found, strict=True):
        if len(places) != 1 and not edit.optional:
            count = f"{len(places)} places" if places else "nothing"
            where = f"{edit.within}()" if edit.within else "the script"
            after = f" followed by `{edit.followed_by}`" if edit.followed_by else ""
            yield f"{count} in {where} like `{edit.anchor}`{after}"
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


def _statements(code: str) -> list[Any]:
    """Statements of a snippet; comments and blank lines above the first one belong to it."""
    module = cst.parse_module(code).visit(_BlankLines())
    assert isinstance(module, cst.Module)
    first: Any = module.body[0]
    return [first.with_changes(leading_lines=[*module.header, *first.leading_lines]), *module.body[1:]]


class _BlankLines(cst.CSTTransformer):
    """Blank lines stay blank where the snippet is indented."""

    def leave_EmptyLine(self, original_node: cst.EmptyLine, updated_node: cst.EmptyLine) -> cst.EmptyLine:  # noqa: N802
        return updated_node.with_changes(indent=updated_node.comment is not None)


def _keyword(argument: cst.Arg) -> str | None:
    return argument.keyword.value if argument.keyword is not None else None


def _with_item(items: Sequence[Any], item: Any, position: int | None) -> list[Any]:
    """``items`` of a call or function with one more, separated like the others."""
    if not items:
        return [item]
    if position is not None and position < len(items):
        return [*items[:position], item.with_changes(comma=items[0].comma), *items[position:]]
    *others, last = items
    between = others[-1].comma if others else cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    end = "whitespace_after_param" if isinstance(item, cst.Param) else "whitespace_after_arg"
    item = item.with_changes(comma=last.comma, **{end: getattr(last, end)})
    return [*others, last.with_changes(comma=between, **{end: cst.SimpleWhitespace("")}), item]


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
