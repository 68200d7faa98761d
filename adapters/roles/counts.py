"""The count of steps, their number in an epoch, and the number of epochs."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from ..analysis.values import Env, dotted, place_of
from ..analysis.views import names_of
from .around import Around
from .findings import Lacking, Missing


def find_count(around: Around) -> dict[str, str]:
    """The count of steps, their number in an epoch, and the number of epochs."""
    loops = around.loops()
    found = _written_count(around, loops)
    epochs = _epochs(around, loops)
    if found is None:
        found = _kept_count(around, loops) or _loop_count(around, loops)
    iteration, length, line = found
    around.findings.add("iteration", iteration, line)
    around.findings.add("steps of an epoch", length, line)
    around.findings.add("epochs", epochs, loops[0].lineno)
    return {"iteration": iteration, "length": length, "epochs": epochs}


def _written_count(around: Around, loops: Sequence[ast.For]) -> tuple[str, str, int] | None:
    """``iters = epoch * len(loader) + i`` of the script."""
    for place in around.flow.places:
        statement = place.statement
        inside = loops and any(around is loops[-1] for around, _ in place.around)
        if (
            not inside
            or place.function != around.target.function
            or not isinstance(statement, ast.Assign)
            or len(statement.targets) != 1
        ):
            continue
        product = _count_of(statement.value, place.env)
        length = _length(around, product, place.env) if product is not None else None
        if length is None:
            continue
        name, value = ast.unparse(statement.targets[0]), ast.unparse(statement.value)
        held = around.target.env.get(name)
        bound = held is not None and held.node is statement.value
        visible = {
            node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name)
        } <= around.target.env.keys() | {"len"}
        if bound or visible:
            return (name if bound else value), length, statement.lineno
    return None


def _kept_count(around: Around, loops: Sequence[ast.For]) -> tuple[str, str, int] | None:
    """``iteration += 1`` after each step, of a name that lives longer than an epoch."""
    loaders = _loaders(around, loops[-1]) if loops else []
    after = around.flow.places[around.flow.places.index(around.target) :]
    for place in after if loaders else ():
        statement = place.statement
        if not any(one is loops[-1] for one, _ in place.around) or not _adds_one(statement):
            continue
        name = dotted(statement.target)  # type: ignore[attr-defined]
        if name in around.target.env and name in around.env:
            return name, _shortest(loaders), statement.lineno
    return None


def _adds_one(statement: ast.stmt) -> bool:
    one = isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Add)
    return one and isinstance(statement.value, ast.Constant) and statement.value.value == 1  # type: ignore[attr-defined]


def _shortest(loaders: Sequence[str]) -> str:
    lengths = [f"len({one})" for one in loaders]
    return lengths[0] if len(lengths) == 1 else f"min({', '.join(lengths)})"


def _length(around: Around, node: ast.expr, env: Env) -> str | None:
    """Code of an epoch's length where the plug-in is made."""
    inner = node.args[0] if isinstance(node, ast.Call) and dotted(node.func) == "len" and len(node.args) == 1 else None
    value = env.get(dotted(inner if inner is not None else node))
    names = names_of(value, around.env) if value is not None else []
    if not names:
        return None
    return f"len({names[0]})" if inner is not None else names[0]


def _loop_count(around: Around, loops: Sequence[ast.For]) -> tuple[str, str, int]:
    """From the loops themselves."""
    if len(loops) < 2:
        raise Lacking(
            Missing(
                "iteration",
                "no loop over epochs around the loop over batches",
                by_hand="iteration = epoch * len(loader) + i",
            )
        )
    counts = [_counter(around, loop) for loop in loops]
    loaders = _loaders(around, loops[-1])
    if counts[0] is None or counts[-1] is None or not loaders:
        reason = f"`for {ast.unparse(loops[-1].target)} in {ast.unparse(loops[-1].iter)}` counts no steps"
        hint = f"for i, {ast.unparse(loops[-1].target)} in enumerate({ast.unparse(loops[-1].iter)}):"
        raise Lacking(Missing("iteration", reason, [(loops[-1].lineno, ast.unparse(loops[-1].iter))], hint))
    own = [name for one in loaders for name in sorted(names_of(around.env[one], around.target.env), key=one.__ne__)[:1]]
    return f"{counts[0]} * {_shortest(own)} + {counts[-1]}", _shortest(loaders), loops[-1].lineno


def _counter(around: Around, loop: ast.For) -> str | None:
    """Name of a loop's count that the step sees."""
    inside = place_of(around.flow, loop.body[0]).env
    for node in ast.walk(loop.target):
        if isinstance(node, ast.Name):
            value = inside.get(node.id)
            names = names_of(value, around.target.env) if value is not None and value.op == "count" else []
            if names:
                return names[0]
    return None


def _loaders(around: Around, loop: ast.For) -> list[str]:
    """Names of the loaders that a loop goes through, where the plug-in is made."""
    inside = place_of(around.flow, loop.body[0]).env
    items = [value for name, held in inside.items() for value in held if value.op == "item" and name in _targets(loop)]
    names = [name for item in items for name in names_of(item.args[0], around.env)[:1]]
    return list(dict.fromkeys(names))


def _epochs(around: Around, loops: Sequence[ast.For]) -> str:
    call = loops[0].iter if loops else None
    while isinstance(call, ast.Call) and dotted(call.func).rpartition(".")[2] in ("tqdm", "track") and call.args:
        call = call.args[0]
    if not isinstance(call, ast.Call) or dotted(call.func) not in ("range", "trange") or not call.args:
        near = [(loops[0].lineno, ast.unparse(loops[0].iter))] if loops else []
        raise Lacking(Missing("epochs", "expected `for epoch in range(...)` around the training", near, "epochs=..."))
    return ast.unparse(call.args[1] if len(call.args) > 1 else call.args[0])


def _count_of(node: ast.expr, env: Env) -> ast.expr | None:
    """The length in ``epoch * length + i``."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add):
        return None
    for product, rest in ((node.left, node.right), (node.right, node.left)):
        if isinstance(product, ast.BinOp) and isinstance(product.op, ast.Mult) and _is_count(rest, env):
            for one, other in ((product.left, product.right), (product.right, product.left)):
                if _is_count(one, env):
                    return other
    return None


def _is_count(node: ast.expr, env: Env) -> bool:
    value = env.get(dotted(node))
    return value is not None and value.op == "count"


def _targets(loop: ast.For) -> set[str]:
    return {node.id for node in ast.walk(loop.target) if isinstance(node, ast.Name)}
