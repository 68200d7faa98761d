"""Loops around a training step: how often they are gone through, and what counts that."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from ..analysis.names import ENDLESS
from ..analysis.values import Env, dotted, place_of
from ..analysis.views import names_of
from .around import Around


def step_loops(around: Around) -> list[ast.For | ast.While]:
    """The loops around the optimizer's step, outermost first: not those that only add up gradients for it."""
    loops = around.loops()
    steps = {f"{around.descent.optimizer}.step", "scaler.step"}
    stepping = [loop for loop in loops if any(_calls(node, steps, around) for node in ast.walk(loop))]
    inner = [loop for loop in loops if any(node is around.descent.backward.statement for node in ast.walk(loop))]
    kept = [loop for loop in loops if loop in stepping or loop not in inner]
    return kept if any(loop in stepping for loop in inner) else loops


def _calls(node: ast.AST, names: set[str], around: Around) -> bool:
    """Whether an expression steps the optimizer, itself or in a scaler."""
    if not isinstance(node, ast.Call) or not dotted(node.func).endswith(".step"):
        return False
    return dotted(node.func) in names or any(dotted(arg) == around.descent.optimizer for arg in node.args)


def times(around: Around, loop: ast.For) -> str | None:
    """Code of how often a loop is gone through, where the plug-in is made."""
    env = place_of(around.flow, loop.body[0]).env
    bound = range_of(loop)
    if bound is not None:
        code = there(around, bound, env)
        return f"({code})" if code is not None and isinstance(bound, ast.BinOp) else code
    ends = [there(around, end, env) for end in breaks(loop, env)]
    loaders = [f"len({one})" for one in loaders_of(around, loop)]
    lengths = [*loaders, *(end for end in ends if end is not None)]
    if not lengths:
        return None
    return least(lengths)


def least(lengths: Sequence[str]) -> str:
    """Code of the smallest number."""
    return lengths[0] if len(lengths) == 1 else f"min({', '.join(lengths)})"


def range_of(loop: ast.For) -> ast.expr | None:
    """``n`` of ``for i in range(n)``."""
    call = loop.iter
    while isinstance(call, ast.Call) and dotted(call.func).rpartition(".")[2] in ("tqdm", "enumerate", "track"):
        call = call.args[0] if call.args else ast.Constant(None)
    one = isinstance(call, ast.Call) and dotted(call.func) in ("range", "trange") and len(call.args) == 1
    return call.args[0] if one else None  # type: ignore[attr-defined]


def end_of_range(loop: ast.For) -> ast.expr | None:
    """``n`` of ``for i in range(n)`` and ``range(start, n)``, also in a progress bar."""
    call: ast.expr | None = loop.iter
    while isinstance(call, ast.Call) and dotted(call.func).rpartition(".")[2] in ("tqdm", "track"):
        call = call.args[0] if call.args else None
    if not isinstance(call, ast.Call) or dotted(call.func) not in ("range", "trange") or not call.args:
        return None
    return call.args[1] if len(call.args) > 1 else call.args[0]


def breaks(loop: ast.For, env: Env) -> list[ast.expr]:
    """``n`` of ``if i == n: break``, of the loop's own count."""
    return [
        one.test.comparators[0]
        for one in loop.body
        if isinstance(one, ast.If)
        and isinstance(one.body[-1], ast.Break)
        and isinstance(one.test, ast.Compare)
        and isinstance(one.test.ops[0], ast.Eq | ast.GtE)
        and dotted(one.test.left) in targets(loop)
        and is_count(one.test.left, env)
    ]


def loaders_of(around: Around, loop: ast.For) -> list[str]:
    """Names of the loaders that a loop goes through, where the plug-in is made."""
    inside = place_of(around.flow, loop.body[0]).env
    items = [
        value
        for name, held in inside.items()
        for value in held
        if value.op == "item" and value.detail != ENDLESS and name in targets(loop)
    ]
    names = [name for item in items for name in names_of(item.args[0], around.env)[:1]]
    return list(dict.fromkeys(names))


def there(around: Around, node: ast.expr, env: Env) -> str | None:
    """Code of a number of the step's loop, where the plug-in is made; ``None`` if a name is another there, or none."""
    given = dict[str, str]()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and dotted(inner.func) not in ("len", "min", "max", "int"):
            return None
        if not isinstance(inner, ast.Name) or inner.id in ("len", "min", "max", "int"):
            continue
        value = env.get(inner.id)
        if inner.id != "self" and (value is None or around.env.get(inner.id) is not value):
            names = names_of(value, around.env) if value is not None else []
            if not names:
                return None
            given[inner.id] = names[0]
    text = ast.unparse(node)
    for old, new in given.items():
        text = re.sub(rf"(?<![\w.]){old}\b", new, text)
    return text


def adds_one(statement: ast.stmt) -> bool:
    """``i += 1``."""
    one = isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Add)
    return one and isinstance(statement.value, ast.Constant) and statement.value.value == 1  # type: ignore[attr-defined]


def is_count(node: ast.expr, env: Env) -> bool:
    """Whether a name counts what a loop goes through."""
    value = env.get(dotted(node))
    return value is not None and value.op == "count"


def targets(loop: ast.For) -> set[str]:
    """Names that a loop binds."""
    return {node.id for node in ast.walk(loop.target) if isinstance(node, ast.Name)}


def counter(around: Around, loop: ast.For) -> str | None:
    """Name of a loop's count that the step sees."""
    inside = place_of(around.flow, loop.body[0]).env
    for node in ast.walk(loop.target):
        if isinstance(node, ast.Name):
            value = inside.get(node.id)
            names = names_of(value, around.target.env) if value is not None and value.op == "count" else []
            if names:
                return names[0]
    return None
