"""Edits for a pass without gradient that is listened to, and for the average of the teacher's projection."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..analysis.values import dotted
from ..editing.edit import Edit
from ..roles.findings import Lacking, Missing
from .edits import after, replaced
from .found import Found


def teacher_edits(found: Found) -> Iterator[Edit]:
    """Listening to a pass without gradient, and the average of the teacher's projection.

    Raises:
        Lacking: No average of the teacher's parameters was found.
    """
    weak = found.step.weak
    if weak is None or weak.source != "listened" or weak.context is None:
        return
    context = weak.context.statement
    assert isinstance(context, ast.With)
    call = next(
        item.context_expr
        for item in context.items
        if dotted(getattr(item.context_expr, "func", item.context_expr)).endswith(("no_grad", "inference_mode"))
    )
    yield replaced(call, "brpg.teacher_pass()")
    if weak.network == found.step.student:
        return
    statement, ratio = _average(found, weak.network)
    found.findings.add("average", ratio, statement.lineno, note=f"share of `{weak.network}` that stays")
    yield after(statement, f"brpg.update_teacher({ratio})")


def _average(found: Found, teacher: str) -> tuple[ast.stmt, str]:
    """The last statement of a step that moves the teacher, and the share that stays."""
    target, student = found.step.descent.place, found.step.student
    last: tuple[ast.stmt, str] | None = None
    for place in found.flow.places[found.flow.places.index(target) :]:
        statement = place.statement
        visible = place.function == target.function or found.around.own
        if not visible or not isinstance(statement, ast.For | ast.Expr):
            continue
        if not {teacher, student} <= {dotted(node) for node in ast.walk(statement)}:
            continue
        ratio = _ratio(statement, {teacher, student})
        if ratio:
            last = statement, ratio
    if last is None:
        raise Lacking(
            Missing(
                "average",
                f"nothing moves `{teacher}` towards `{student}` after the step",
                by_hand="brpg.update_teacher(RATIO)  # where the teacher moves",
            )
        )
    return last


def _ratio(statement: ast.stmt, networks: set[str]) -> str:
    """``r`` of ``r * teacher + (1 - r) * student``, or the number in a call with both networks."""
    for node in ast.walk(statement):
        if (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Sub)
            and isinstance(node.left, ast.Constant)
            and node.left.value in (1, 1.0)
        ):
            return ast.unparse(node.right)
    call = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(call, ast.Call):
        others = [
            argument
            for argument in (*call.args, *(keyword.value for keyword in call.keywords))
            if dotted(argument) not in networks
        ]
        return ast.unparse(others[0]) if others else ""
    return ""
