"""The network that is trained, and its passes in a step."""

from __future__ import annotations

import ast

from ..analysis.values import Value
from .findings import Lacking, Missing, line_of
from .parts import Pass
from .sight import Sight, grad_forwards


def find_student(sight: Sight) -> str:
    """Name of the network whose gradient the loss has."""
    names = list(dict.fromkeys(map(sight.network, grad_forwards(sight.descent.value))))
    frozen = _frozen(sight)
    left = [name for name in names if name not in frozen] or names
    line = sight.target.statement.lineno
    if not left:
        near = [
            (line_of(value), ast.unparse(value.node or ast.Pass())) for value, _ in sight.calls if value.op == "forward"
        ]
        raise Lacking(Missing("student", f"no forward pass with gradient in `{sight.descent.loss}`", near))
    if len(left) > 1:
        reason = f"{len(left)} networks have a gradient of `{sight.descent.loss}`: {', '.join(left)}; a head serves one"
        raise Lacking(Missing("student", reason, [(line, name) for name in left]))
    return sight.findings.add(
        "student", left[0], line_of(_first(sight, left[0])), note="its passes reach the loss with gradient"
    )


def _first(sight: Sight, name: str) -> Value:
    return next(value for value, _ in sight.flow.forwards() if sight.network(value) == name and value.detail[1])


def _frozen(sight: Sight) -> set[str]:
    """Names of networks whose parameters get no gradient."""
    values = set[int]()
    for place in sight.flow.places:
        text = (
            ast.unparse(place.statement)
            if not hasattr(place.statement, "body") or isinstance(place.statement, ast.For)
            else ""
        )
        if "requires_grad_(False)" in text or "requires_grad = False" in text or ".detach_()" in text:
            names = {
                name
                for name in sight.flow.networks
                if f"{name}.parameters()" in text or f"{name}.requires_grad_" in text
            }
            values |= {id(place.env[name]) for name in names if name in place.env}
    env = sight.target.env
    return {name for name in sight.flow.networks if name in env and any(id(inner) in values for inner in env[name])}


def find_passes(sight: Sight, student: str, taps: bool) -> tuple[list[Pass], list[Pass]]:
    """The student's training passes in a step, in order, and those whose results are detached."""
    every = [
        Pass(value, place)
        for value, place in sight.calls
        if value.op == "forward" and value.detail[1] and sight.network(value) == student
    ]
    reached = {id(value) for value in grad_forwards(sight.descent.value)}
    found = [one for one in every if id(one.value) in reached]
    detached = [one for one in every if id(one.value) not in reached]
    for one in found if taps else ():
        _once(sight, one)
    for number, one in enumerate(found, 1):
        code = ast.unparse(one.value.node or ast.Pass())
        sight.findings.add(f"pass {number}", code, line_of(one.value), note="training pass of the student")
    return found, detached if taps else []


def _once(sight: Sight, one: Pass) -> None:
    """A pass that some steps make and others do not, or several times, cannot be told from the others."""
    around = [statement for statement, _ in sight.target.around]
    extra = [
        statement
        for statement, _ in one.place.around
        if statement not in around and not isinstance(statement, ast.With)
    ]
    if not extra or one.place.function != sight.target.function:
        return
    kind = "in a loop" if isinstance(extra[0], ast.For | ast.While) else "in one branch only"
    code, line = ast.unparse(one.value.node or ast.Pass()), one.place.statement.lineno
    reason = f"`{code}` is run with gradient {kind}; the number of training passes must be the same in each step"
    raise Lacking(Missing("passes", reason, [(line, ast.unparse(one.place.statement).splitlines()[0])]))
