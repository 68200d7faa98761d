"""Values that the names of a script hold, the statements that it comes by, and all of them together."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

BACKWARD = ("backward", "manual_backward")
Env = dict[str, "Value"]


@dataclass(frozen=True, eq=False)
class Value:
    """What an expression gives.

    Attributes:
        op: What made it, such as ``cat``, ``forward``, ``label`` (of the most probable class), ``call``.
        args: Of which values.
        detail: What else tells it from others of its kind.
        node: The expression.
    """

    op: str
    args: tuple[Value, ...] = ()
    detail: Any = None
    node: ast.AST | None = None

    def __iter__(self) -> Iterator[Value]:
        """Itself and all it is made of, each once, itself first."""
        seen, waiting = set[int](), [self]
        while waiting:
            value = waiting.pop()
            if id(value) not in seen:
                seen.add(id(value))
                yield value
                waiting += reversed(value.args)


@dataclass(frozen=True)
class Place:
    """A statement where the flow came by.

    Attributes:
        statement: It.
        function: The function that holds it; empty at the top.
        env: What each visible name holds before it.
        around: The compound statements around it, each with the block (``body``, ``orelse``) it is in, outermost first.
        block: The statements that it stands among.
        depth: Calls between the script's start and it.
    """

    statement: ast.stmt
    function: str
    env: Env
    around: tuple[tuple[ast.stmt, str], ...]
    block: Sequence[ast.stmt]
    depth: int


@dataclass
class Flow:
    """The flow through a script.

    Attributes:
        places: Statements in the order they were met.
        calls: Calls that are not understood, and forward passes, in order, each with its place.
        compared: Values that are compared with a number, with that number.
        networks: Names that are used as networks are.
        returned: What functions that were followed returned last, by their identity.
    """

    places: list[Place] = field(default_factory=list)
    compared: list[tuple[Value, Any]] = field(default_factory=list)
    calls: list[tuple[Value, Place]] = field(default_factory=list)
    networks: set[str] = field(default_factory=set)
    returned: dict[int, list[Value]] = field(default_factory=dict)

    def forwards(self) -> list[tuple[Value, Place]]:
        """Forward passes in order."""
        return [(value, place) for value, place in self.calls if value.op == "forward"]


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of names and attributes; empty for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def place_of(flow: Flow, statement: ast.stmt) -> Place:
    """Where the flow came by a statement first."""
    return next(place for place in flow.places if place.statement is statement)
