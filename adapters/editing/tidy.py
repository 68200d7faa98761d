"""One statement a line, so that each has a place of its own to insert lines at."""

from __future__ import annotations

import ast

import libcst as cst

MARK = "\ufeff"


class _OneEach(cst.CSTTransformer):
    """Splits ``a; b``, and gives ``if x: a`` a block."""

    def leave_SimpleStatementLine(  # noqa: N802
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement]:
        """See :class:`libcst.CSTTransformer`."""
        if len(updated_node.body) == 1:
            return updated_node
        single = [statement.with_changes(semicolon=cst.MaybeSentinel.DEFAULT) for statement in updated_node.body]
        first = updated_node.with_changes(body=single[:1])
        return cst.FlattenSentinel([first, *(cst.SimpleStatementLine([statement]) for statement in single[1:])])

    def leave_SimpleStatementSuite(  # noqa: N802
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.BaseSuite:
        """See :class:`libcst.CSTTransformer`."""
        single = [statement.with_changes(semicolon=cst.MaybeSentinel.DEFAULT) for statement in updated_node.body]
        return cst.IndentedBlock(
            [cst.SimpleStatementLine([statement]) for statement in single], header=updated_node.trailing_whitespace
        )


def tidy(source: str) -> str:
    """The source with one statement a line; itself if it is so already.

    >>> print(tidy("if a: b(); c()"), end="")
    if a:
        b()
        c()
    """
    tree = ast.parse(source)
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    if len(lines) == len(set(lines)):
        return source
    return str(cst.parse_module(source).visit(_OneEach()).code)
