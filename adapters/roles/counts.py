"""The count of steps, their number in an epoch, and the number of epochs."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from ..analysis.values import Env, dotted
from ..analysis.views import names_of
from .around import Around
from .findings import Lacking, Missing
from .holes import hole
from .iterations import PARTS, find_total
from .loops import adds_one, counter, end_of_range, is_count, least, loaders_of, range_of, step_loops, there, times


def find_count(around: Around) -> dict[str, str]:
    """The count of steps, their number in an epoch, and the number of epochs."""
    every = step_loops(around)
    loops = [loop for loop in every if isinstance(loop, ast.For)]
    names = {name: hole(name) for name in ("iteration", "length", "epochs")}
    with around.findings.bearing():
        found, note = _written_count(around, loops), ""
        total = find_total(around, every) if found is None else None
        if total is not None:
            around.counted, found, epochs = total.name, (total.code, total.part, total.line), str(PARTS)
            note = f"without epochs, one of {PARTS} parts of {total.end} iterations counts as one"
        else:
            epochs = _epochs(around, loops)
            found = found or _kept_count(around, loops) or _loop_count(around, loops)
        names["iteration"], names["length"], line = found
        around.findings.add("iteration", names["iteration"], line)
        around.findings.add("steps of an epoch", names["length"], line)
        names["epochs"] = around.findings.add("epochs", epochs, every[0].lineno, note=note)
    return names


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
        bound = range_of(loops[-1])
        if length is None and product is not None and bound is not None and ast.unparse(product) == ast.unparse(bound):
            length = there(around, product, place.env)
        if length is None:
            continue
        name, value = ast.unparse(statement.targets[0]), ast.unparse(statement.value)
        held = around.target.env.get(name)
        named = held is not None and held.node is statement.value
        visible = {
            node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name)
        } <= around.target.env.keys() | {"len"}
        if named or visible:
            return (name if named else value), length, statement.lineno
    return None


def _kept_count(around: Around, loops: Sequence[ast.For]) -> tuple[str, str, int] | None:
    """``iteration += 1`` after each step, of a name that lives longer than an epoch."""
    length = times(around, loops[-1]) if loops else None
    for place in around.flow.places if length is not None else ():
        statement = place.statement
        outer = [one for one, _ in place.around]
        if not any(one is loops[-1] for one in outer) or not adds_one(statement):
            continue
        name = dotted(statement.target)  # type: ignore[attr-defined]
        if name not in around.target.env or name not in around.env or place.depth > around.target.depth:
            continue
        if place.function == around.target.function and statement.lineno < around.target.statement.lineno:
            continue
        every = [_every(one) for one in outer[[one is loops[-1] for one in outer].index(True) + 1 :]]
        parts = [there(around, one, place.env) for one in every if one is not None]
        if None not in parts and length is not None:
            return name, " // ".join([length, *filter(None, parts)]), statement.lineno
    return None


def _every(statement: ast.stmt) -> ast.expr | None:
    """``n`` of ``if (i + 1) % n == 0``."""
    test = statement.test if isinstance(statement, ast.If) else None
    left = test.left if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq) else None
    return left.right if isinstance(left, ast.BinOp) and isinstance(left.op, ast.Mod) else None


def _shortest(loaders: Sequence[str]) -> str:
    return least([f"len({one})" for one in loaders])


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
    counts = [counter(around, loop) for loop in loops]
    loaders = loaders_of(around, loops[-1])
    code = ast.unparse(loops[-1].iter)
    length = times(around, loops[-1])
    if length is None:
        reason = (
            f"cannot see how many steps `for {ast.unparse(loops[-1].target)} in {code}` takes: "
            f"cannot see that `{code}` is a DataLoader that is there before the loop over epochs"
        )
        hint = "for i, (...) in enumerate(LOADER):  # a name that holds DataLoader(...) before the loop over epochs"
        raise Lacking(Missing("iteration", reason, [(loops[-1].lineno, code)], hint))
    if counts[0] is None or counts[-1] is None:
        raise Lacking(
            Missing(
                "iteration", _uncounted(around, loops, counts), [(loops[-1].lineno, code)], _hint(around, loops, counts)
            )
        )
    own = [name for one in loaders for name in sorted(names_of(around.env[one], around.target.env), key=one.__ne__)[:1]]
    plain = bool(loaders) and length == _shortest(loaders)
    return f"{counts[0]} * {_shortest(own) if plain and own else length} + {counts[-1]}", length, loops[-1].lineno


def _uncounted(around: Around, loops: Sequence[ast.For], counts: Sequence[str | None]) -> str:
    if counts[-1] is None:
        return f"`for {ast.unparse(loops[-1].target)} in {ast.unparse(loops[-1].iter)}` counts no steps"
    return f"`{ast.unparse(loops[0].target)}` is not there in {around.target.function or 'the script'}()"


def _hint(around: Around, loops: Sequence[ast.For], counts: Sequence[str | None]) -> str:
    """What to write so that steps are counted: it works when it is followed to the letter."""
    loop, optimizer = loops[-1], around.descent.optimizer
    looped = isinstance(loop.iter, ast.Call) and dotted(loop.iter.func) in ("range", "trange", "enumerate")
    if around.own:
        return (
            f"self.iteration = 0  # at the start of __init__(); and self.iteration += 1 after {optimizer}.step(), "
            "in the same block"
        )
    if counts[0] is not None and not looped:
        free = next(name for name in ("i", "step", "number") if name not in around.target.env)
        return f"for {free}, {ast.unparse(loop.target)} in enumerate({ast.unparse(loop.iter)}):"
    if not around.calls:
        start = f"for {ast.unparse(loops[0].target)} in {ast.unparse(loops[0].iter)}"
        return f"iteration = 0  # before `{start}`; and iteration += 1 after {optimizer}.step(), in the same block"
    name = around.calls[0][1]
    return f"give {name}() the count of epochs as an argument, and count its steps with enumerate() or range()"


def _epochs(around: Around, loops: Sequence[ast.For]) -> str:
    end = end_of_range(loops[0]) if loops else None
    if end is None:
        near = [(loops[0].lineno, ast.unparse(loops[0].iter))] if loops else []
        reason = "expected `for epoch in range(...)`, or `while iteration < ...`, around the training"
        raise Lacking(Missing("epochs", reason, near, "epochs=..."))
    return ast.unparse(end)


def _count_of(node: ast.expr, env: Env) -> ast.expr | None:
    """The length in ``epoch * length + i``."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add):
        return None
    for product, rest in ((node.left, node.right), (node.right, node.left)):
        if isinstance(product, ast.BinOp) and isinstance(product.op, ast.Mult) and is_count(rest, env):
            for one, other in ((product.left, product.right), (product.right, product.left)):
                if is_count(one, env):
                    return other
    return None
