"""Where the features of the weak view come from."""

from __future__ import annotations

import ast

from ..analysis.kinds import counterparts, is_data, labels_in
from ..analysis.statements import without_gradient
from ..analysis.values import Place, Value
from ..analysis.views import names_of, view
from .findings import line_of
from .parts import Step, Weak
from .sight import Sight, text


def find_weak(sight: Sight, step: Step) -> Weak | None:
    """The pass whose predictions the pseudo labels are."""
    bases = labels_in(step.strong[0].labels)
    trained = {id(one.value) for one in step.passes}
    seen = [(label, view(label.args[0])) for label in bases]
    known = [(label, found) for label, found in seen if found is not None and len(found.parts) == 1]
    own = [(label, found) for label, found in known if id(found.forward) in trained]
    others = [(label, found) for label, found in known if sight.network(found.forward) != step.student]
    for label, found in own or others or known:
        valid = _valid(sight, step, label)
        network, forward, part = sight.network(found.forward), found.forward, found.parts[0]
        line = line_of(forward)
        if own:
            sight.findings.add("weak view", text(found.images[0]), line, note="the student's training pass")
            return Weak("student", network, forward, part, valid, None)
        context = _context(sight, forward)
        if context is not None:
            sight.findings.add(
                "weak view", ast.unparse(forward.node or ast.Pass()), line, note="a pass without gradient"
            )
            return Weak("listened", network, forward, part, valid, context)
    return None


def _valid(sight: Sight, step: Step, label: Value) -> str:
    strong = step.strong[0]
    held = sight.target.env.get(strong.ignore)
    pairs = counterparts(strong.labels, held, is_data) if held is not None else []
    for own, data in pairs:
        names = names_of(data, sight.target.env) if own is label else []
        if names:
            return names[0]
    return ""


def _context(sight: Sight, forward: Value) -> Place | None:
    """The ``with torch.no_grad()`` around a pass, if there is nothing else to hear in it."""
    place = next(place for value, place in sight.calls if value is forward)
    inner = [statement for statement, _ in place.around if isinstance(statement, ast.With)]
    inner = [statement for statement in inner if any(without_gradient(item.context_expr) for item in statement.items)]
    if not inner or place.function != sight.target.function:
        return None
    heard = [
        value
        for value, other in sight.calls
        if value.op == "forward" and value.detail[0] == forward.detail[0] and inner[-1] in [s for s, _ in other.around]
    ]
    if len(heard) != 1:
        return None
    return next(found for found in sight.flow.places if found.statement is inner[-1])
