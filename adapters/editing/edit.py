"""Changes of a script, each at one place that is known by what its code means."""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

import libcst as cst


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
