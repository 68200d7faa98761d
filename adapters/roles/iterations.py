"""Trainings that count iterations, and no epochs."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..analysis.values import Place, dotted, place_of
from .around import Around
from .loops import adds_one, counter, end_of_range, there, times

PARTS = 100
"""Lengths of phases are in epochs: where there are none, one of so many parts of the training counts as one."""


@dataclass(frozen=True)
class Total:
    """A count of iterations that goes on to the end of the training.

    Attributes:
        name: Of the count.
        code: The count of steps so far, from 0, where the step is.
        end: Code of the number of iterations, where the plug-in is made.
        line: That has the end.
    """

    name: str
    code: str
    end: str
    line: int

    @property
    def part(self) -> str:
        """Code of the iterations in one of the parts."""
        if self.end.isdigit():
            return str(max(1, int(self.end) // PARTS))
        whole = isinstance(ast.parse(self.end, mode="eval").body, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
        return f"max(1, {self.end if whole else f'({self.end})'} // {PARTS})"


def find_total(around: Around, loops: Sequence[ast.For | ast.While]) -> Total | None:
    """The count of a training in one loop, or in a loop that ends at a number of iterations.

    Args:
        around: What is around the step.
        loops: The loops around it, outermost first.
    """
    first = loops[0] if loops else None
    if len(loops) == 1 and isinstance(first, ast.For):
        name = counter(around, first)
        bound = end_of_range(first)
        end = there(around, bound, _inside(around, first).env) if bound is not None else times(around, first)
        return Total(name, name, end, first.lineno) if name is not None and end is not None else None
    for loop in loops:
        for name, bound, line in _ends(loop) if isinstance(loop, ast.While) else ():
            counted = _counted(around, loops[-1], name)
            end = there(around, bound, _inside(around, loop).env)
            if counted is not None and end is not None and name in around.target.env:
                early = counted.lineno < around.target.statement.lineno and _is_beside(around, counted)
                return Total(name, f"{name} - 1" if early else name, end, line)
    return None


def _inside(around: Around, loop: ast.For | ast.While) -> Place:
    return place_of(around.flow, loop.body[0])


def _ends(loop: ast.While) -> Iterator[tuple[str, ast.expr, int]]:
    """``(i, n)`` of ``while i < n``, and of ``if i >= n: break`` in a loop."""
    going = [loop.test], (ast.Lt, ast.LtE, ast.NotEq)
    leaving = [
        node.test
        for node in ast.walk(loop)
        if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Break | ast.Return)
    ]
    for tests, kinds in (going, (leaving, (ast.Gt, ast.GtE, ast.Eq))):
        for test in tests:
            if isinstance(test, ast.Compare) and isinstance(test.ops[0], kinds) and dotted(test.left):
                yield dotted(test.left), test.comparators[0], test.lineno


def _counted(around: Around, loop: ast.For | ast.While, name: str) -> ast.stmt | None:
    """``i += 1`` in the loop over batches."""
    for place in around.flow.places:
        statement, inside = place.statement, any(one is loop for one, _ in place.around)
        adds = isinstance(statement, ast.AugAssign) and adds_one(statement) and dotted(statement.target) == name
        if inside and adds:
            return statement
    return None


def _is_beside(around: Around, statement: ast.stmt) -> bool:
    """Whether a statement is in the function of the step."""
    return place_of(around.flow, statement).function == around.target.function
