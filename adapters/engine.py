"""Applies declared edits to a Python source, keeping its formatting and comments."""

from __future__ import annotations

import ast
import builtins
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

import libcst as cst

from . import patterns


class PatchError(Exception):
    """A source that the edits do not fit; the message says what was looked for."""


@dataclass(frozen=True, kw_only=True)
class Edit(ABC):
    """One change, at the one place whose code means the same as ``anchor``.

    Attributes:
        anchor: Pattern of a statement or expression, see :mod:`brpg_lib.adapters.patterns`.
        within: Function that holds the place; empty for anywhere.
        optional: A mend: done at every place that needs it, fine if there is none.
    """

    anchor: str
    within: str = ""
    optional: bool = False

    @property
    def pattern(self) -> ast.AST:
        """What to look for: a statement, or an expression if the anchor is one."""
        (statement,) = ast.parse(self.anchor).body
        return statement.value if isinstance(statement, ast.Expr) else statement

    @property
    def uses(self) -> str:
        """Code whose names the script must define."""
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
        return ast.parse(self.anchor).body[0]

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
            parameters = _with_item(node.params.params, cst.Param(cst.Name(self.code)), self.position)
            return node.with_changes(params=node.params.with_changes(params=parameters))
        call = cst.ensure_type(cst.parse_expression(f"f({self.code})"), cst.Call)
        added = call.args[0]
        if added.keyword is not None and any(_keyword(argument) == added.keyword.value for argument in node.args):
            return node
        return node.with_changes(args=_with_item(node.args, added, self.position))


def patch(source: str, edits: Sequence[Edit]) -> str:
    """Apply ``edits`` to ``source``, all or none.

    Raises:
        PatchError: An anchor is missing or there twice, an inserted name is defined nowhere, or the source is not valid
            Python.
    """
    try:
        module = cst.parse_module(source)
    except cst.ParserSyntaxError as error:
        raise PatchError(f"not valid Python: line {error.raw_line}") from None
    finder = _Finder(module, edits)
    module.visit(finder)
    problems = [
        f"{f'{count} places' if count else 'nothing'} in {f'{edit.within}()' if edit.within else 'the script'} "
        f"like `{edit.anchor}`"
        for edit, count in zip(edits, map(len, finder.found), strict=True)
        if count != 1 and not edit.optional
    ]
    if not problems:
        changed = module.visit(_Applier(edits, finder.found))
        assert isinstance(changed, cst.Module)
        problems = list(_undefined(changed.code, edits))
    if problems:
        raise PatchError(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))
    return changed.code


class _Finder(cst.CSTVisitor):
    """Lists, for each edit, the nodes that mean the same as its anchor."""

    def __init__(self, module: cst.Module, edits: Sequence[Edit]) -> None:
        super().__init__()
        self._module, self._edits = module, edits
        self._patterns = [edit.pattern for edit in edits]
        self._functions: list[str] = []
        self.found: list[list[cst.CSTNode]] = [[] for _ in edits]

    def on_visit(self, node: cst.CSTNode) -> bool:
        meaning = _meaning(self._module, node)
        if meaning is not None:
            for edit, pattern, found in zip(self._edits, self._patterns, self.found, strict=True):
                inside = not edit.within or edit.within in self._functions
                if inside and patterns.matches(pattern, meaning):
                    found.append(node)
        if isinstance(node, cst.FunctionDef):
            self._functions.append(node.name.value)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef):
            self._functions.pop()


class _Applier(cst.CSTTransformer):
    def __init__(self, edits: Sequence[Edit], places: Sequence[Sequence[cst.CSTNode]]) -> None:
        super().__init__()
        self._edits = {id(node): edit for edit, nodes in zip(edits, places, strict=True) for node in nodes}

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        edit = self._edits.get(id(original_node))
        return updated_node if edit is None else edit.apply(updated_node)


def _meaning(module: cst.Module, node: cst.CSTNode) -> ast.AST | None:
    """The syntax tree of a statement or call; None for other nodes, and for a line of several statements."""
    if isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
        body = ast.parse(module.code_for_node(node)).body
        return body[0] if len(body) == 1 else None
    if isinstance(node, cst.Call | cst.BinaryOperation):
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
    if position is not None and position < len(items):
        return [*items[:position], item.with_changes(comma=items[0].comma), *items[position:]]
    *others, last = items
    between = others[-1].comma if others else cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    end = "whitespace_after_param" if isinstance(item, cst.Param) else "whitespace_after_arg"
    item = item.with_changes(comma=last.comma, **{end: getattr(last, end)})
    return [*others, last.with_changes(comma=between, **{end: cst.SimpleWhitespace("")}), item]


def _undefined(source: str, edits: Sequence[Edit]) -> Iterator[str]:
    """Names that an edit uses and the changed source does not define: they would fail in the middle of a training."""
    tree = ast.parse(source)
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    top = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    shared = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    shared |= vars(builtins).keys() | functions.keys() | _defined(top)
    for edit in edits:
        known = shared | _defined([functions[edit.within]] if edit.within in functions else [])
        used = {node.id for node in ast.walk(ast.parse(edit.uses)) if isinstance(node, ast.Name)}
        if used - known:
            yield f"no definition of {', '.join(sorted(used - known))} in {edit.within or 'the script'}"


def _defined(nodes: Sequence[ast.AST]) -> set[str]:
    """Names that the nodes bind: variables, parameters and imports."""
    names = set()
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names
