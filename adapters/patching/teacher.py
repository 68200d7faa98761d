"""Edits for a pass without gradient that is listened to, and for the average of the teacher's projection."""

from __future__ import annotations

import ast
import copy
import math
from collections.abc import Iterator

from ..analysis.names import OWN
from ..analysis.values import dotted
from ..editing.edit import Edit
from ..roles.findings import CERTAIN, LIKELY, Lacking, Missing
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
    statement, share, sure, note = _average(found, weak.network)
    found.findings.add("average", share, statement.lineno, sure, note)
    yield after(statement, f"brpg.update_teacher({share})")


def _average(found: Found, teacher: str) -> tuple[ast.stmt, str, str, str]:
    """The last statement of a step that moves the teacher, the share that stays, how sure that is, and why.

    Raises:
        Lacking: There is none.
    """
    target, student = found.step.descent.place, found.step.student
    last: ast.stmt | None = None
    earlier: list[ast.stmt] = []
    for place in found.flow.places[found.flow.places.index(target) :]:
        visible = place.function == target.function or found.around.own
        if visible and _moves(place.statement, {teacher, student}):
            last = place.statement
            earlier = [one for one in place.block if one.lineno < last.lineno and _moves(one, {teacher, student})]
    if last is None:
        reason = f"nothing moves `{teacher}` towards `{student}` after the step"
        hint = "brpg.update_teacher(SHARE)  # the share of the teacher that stays, where it moves"
        raise Lacking(Missing("average", reason, by_hand=hint))
    shares = (_share(found, one, {teacher, student}) for one in (last, *reversed(earlier)))  # buffers may come last
    share = next(filter(None, shares), "")
    if share:
        return last, share, CERTAIN, f"share of `{teacher}` that stays"
    iteration = found.surroundings.names["iteration"]
    note = "a usual share: what the script computes was not found; put that there"
    return last, f"min(1 - 1 / ({iteration} + 1), 0.99)", LIKELY, note


def _moves(statement: ast.stmt, networks: set[str]) -> bool:
    """A loop over the parameters of both networks, or a call with both."""
    if isinstance(statement, ast.For):
        return networks <= {dotted(node) for node in ast.walk(statement)}
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and networks <= {dotted(argument) for argument in _arguments(call)}


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _share(found: Found, statement: ast.stmt, networks: set[str]) -> str:
    """``r`` of ``r * teacher + (1 - r) * student``; in a function of the script, in the words of who calls it."""
    direct = _staying(statement)
    if direct is not None:
        return ast.unparse(direct)
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call):
        return ""
    name = dotted(call.func).removeprefix(OWN)
    functions = [node for node in ast.walk(found.tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    if len(functions) == 1:
        return _from_within(functions[0], call)
    numbers = [one for one in _arguments(call) if isinstance(one, ast.Constant) and isinstance(one.value, float)]
    others = [one for one in _arguments(call) if dotted(one) not in networks]
    chosen = numbers or (others if len(others) == 1 and "decay" in ast.unparse(others[0]).lower() else [])
    return ast.unparse(chosen[0]) if len(chosen) == 1 else ""


def _staying(node: ast.AST) -> ast.expr | None:
    """``r`` of ``1 - r``, or of two numbers that add up to 1, of which the teacher's is the larger; or ``1 - lerp``."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Sub) and ast.unparse(inner.left) in ("1", "1.0"):
            return inner.right
    constants = [inner for inner in ast.walk(node) if isinstance(inner, ast.Constant)]
    numbers = {one.value: one for one in constants if isinstance(one.value, float)}
    for value, one in numbers.items():
        if value > 0.5 and any(math.isclose(value + other, 1) for other in numbers):
            return one
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and dotted(inner.func).endswith(("lerp", "lerp_")):
            weights = [*inner.args[-1:], *(k.value for k in inner.keywords if k.arg == "weight")]
            return ast.BinOp(ast.Constant(1), ast.Sub(), weights[-1])
    return None


def _from_within(function: ast.FunctionDef, call: ast.Call) -> str:
    """The share that a function computes, with the arguments of a call in the place of its parameters."""
    loops = [node for node in ast.walk(function) if isinstance(node, ast.For)]
    share = next((found for found in map(_staying, loops) if found is not None), None)
    if share is None:
        return ""
    bound = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and list(map(dotted, node.targets)) == [dotted(share) or None]
    ]
    if len(bound) > 1:
        return ""
    share = bound[0].value if bound else share
    names = [argument.arg for argument in function.args.args if argument.arg != "self"]
    given = dict(zip(names, call.args, strict=False)) | {k.arg: k.value for k in call.keywords if k.arg}
    defaults = dict(zip(reversed(names), reversed(function.args.defaults), strict=False))
    known = defaults | given
    used = {node.id for node in ast.walk(share) if isinstance(node, ast.Name)} - {"min", "max", "float", "int", "math"}
    if not used <= known.keys():
        return ""
    return ast.unparse(_Given(known).visit(copy.deepcopy(share)))


class _Given(ast.NodeTransformer):
    """Arguments in the place of parameters."""

    def __init__(self, known: dict[str, ast.expr]) -> None:
        self.known = known

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """See :class:`ast.NodeTransformer`."""
        return self.known.get(node.id, node)
