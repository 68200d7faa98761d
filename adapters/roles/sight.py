"""What a training step comes by, before roles are given."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..analysis.values import Flow, Place, Value
from ..analysis.views import View, layout, names_of, plain, view
from .descent import Descent
from .findings import Findings


class Sight:
    """What a step comes by: its calls, its end, and the images that networks see."""

    def __init__(self, flow: Flow, descent: Descent, findings: Findings) -> None:
        self.flow, self.descent, self.findings = flow, descent, findings
        self.target = descent.place
        self.loop = [statement for statement, _ in self.target.around if isinstance(statement, ast.For | ast.While)]
        self.calls = [(value, place) for value, place in flow.calls if self._in_step(place)]
        self.images = [part for value, _ in flow.forwards() for part in layout(value)]

    def _in_step(self, place: Place) -> bool:
        """Whether a place is run once for each step, before its end."""
        if place.depth > self.target.depth:
            return True
        if not self.loop or place.function != self.target.function:
            return not self.loop
        inside = any(statement is self.loop[-1] for statement, _ in place.around)
        return inside and place.statement.lineno <= self.target.statement.lineno

    def network(self, forward: Value) -> str:
        """The name that the step's function has for the network of a pass."""
        return next(iter(names_of(forward.args[0], self.target.env)), str(forward.detail[0]))

    def trained(self, value: Value, student: str) -> View | None:
        """The images that a value predicts, if the student makes the prediction with gradient."""
        found = view(value)
        trained = found is not None and found.forward.detail[1] and self.network(found.forward) == student
        return found if trained else None

    def is_image(self, value: Value) -> bool:
        """Whether a network sees a value."""
        return any(plain(value) is image for image in self.images)


def flat(value: Value) -> Iterator[Value]:
    """Arguments of a call, and of tuples among them."""
    for argument in value.args:
        if argument.op in ("tuple", "dict"):
            yield from flat(argument)
        else:
            yield argument


def items(value: Value) -> set[int]:
    """Which loaders' items a value is made of."""
    return {id(inner) for inner in value if inner.op == "item"}


def text(value: Value) -> str:
    """The code that made a value."""
    return ast.unparse(value.node) if isinstance(value.node, ast.expr | ast.stmt) else value.op


def grad_forwards(value: Value) -> Iterator[Value]:
    """Forward passes that a gradient of ``value`` reaches."""
    seen, waiting = set[int](), [value]
    while waiting:
        inner = waiting.pop()
        if id(inner) in seen or inner.op in ("label", "detach", "size", "shape"):
            continue
        seen.add(id(inner))
        if inner.op == "forward" and inner.detail[1]:
            yield inner
        waiting += inner.args
