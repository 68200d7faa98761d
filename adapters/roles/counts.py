"""The count of steps, their number in an epoch, and the number of epochs."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from ..analysis.names import ENDLESS
from ..analysis.values import Env, dotted, place_of
from ..analysis.views import names_of
from .around import Around
from .findings import Lacking, Missing
from .holes import hole


def find_count(around: Around) -> dict[str, str]:
    """The count of steps, their number in an epoch, and the number of epochs."""
    loops = _step_loops(around)
    names = {name: hole(name) for name in ("iteration", "length", "epochs")}
    with around.findings.bearing():
        found = _written_count(around, loops)
        epochs = _epochs(around, loops)
        if found is None:
            found = _kept_count(around, loops) or _loop_count(around, loops)
        names["iteration"], names["length"], line = found
        around.findings.add("iteration", names["iteration"], line)
        around.findings.add("steps of an epoch", names["length"], line)
        names["epochs"] = around.findings.add("epochs", epochs, loops[0].lineno)
    return names


def _step_loops(around: Around) -> list[ast.For]:
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
        ranged = _range(loops[-1])
        if (
            length is None
            and product is not None
            and ranged is not None
            and ast.unparse(product) == ast.unparse(ranged)
        ):
            length = _there(around, product, place.env)
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
    length = _steps(around, loops[-1]) if loops else None
    for place in around.flow.places if length is not None else ():
        statement = place.statement
        outer = [one for one, _ in place.around]
        if not any(one is loops[-1] for one in outer) or not _adds_one(statement):
            continue
        name = dotted(statement.target)  # type: ignore[attr-defined]
        if name not in around.target.env or name not in around.env or place.depth > around.target.depth:
            continue
        if place.function == around.target.function and statement.lineno < around.target.statement.lineno:
            continue
        every = [_every(one) for one in outer[[one is loops[-1] for one in outer].index(True) + 1 :]]
        parts = [_there(around, one, place.env) for one in every if one is not None]
        if None not in parts and length is not None:
            return name, " // ".join([length, *filter(None, parts)]), statement.lineno
    return None


def _every(statement: ast.stmt) -> ast.expr | None:
    """``n`` of ``if (i + 1) % n == 0``."""
    test = statement.test if isinstance(statement, ast.If) else None
    left = test.left if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq) else None
    return left.right if isinstance(left, ast.BinOp) and isinstance(left.op, ast.Mod) else None


def _steps(around: Around, loop: ast.For) -> str | None:
    """Code of how often a loop is gone through, where the plug-in is made."""
    env = place_of(around.flow, loop.body[0]).env
    bound = _range(loop)
    if bound is not None:
        code = _there(around, bound, env)
        return f"({code})" if code is not None and isinstance(bound, ast.BinOp) else code
    ends = [_there(around, end, env) for end in _breaks(loop, env)]
    loaders = [f"len({one})" for one in _loaders(around, loop)]
    lengths = [*loaders, *(end for end in ends if end is not None)]
    if not lengths:
        return None
    return lengths[0] if len(lengths) == 1 else f"min({', '.join(lengths)})"


def _range(loop: ast.For) -> ast.expr | None:
    """``n`` of ``for i in range(n)``."""
    call = loop.iter
    while isinstance(call, ast.Call) and dotted(call.func).rpartition(".")[2] in ("tqdm", "enumerate", "track"):
        call = call.args[0] if call.args else ast.Constant(None)
    one = isinstance(call, ast.Call) and dotted(call.func) in ("range", "trange") and len(call.args) == 1
    return call.args[0] if one else None  # type: ignore[attr-defined]


def _breaks(loop: ast.For, env: Env) -> list[ast.expr]:
    """``n`` of ``if i == n: break``, of the loop's own count."""
    return [
        one.test.comparators[0]
        for one in loop.body
        if isinstance(one, ast.If)
        and isinstance(one.body[-1], ast.Break)
        and isinstance(one.test, ast.Compare)
        and isinstance(one.test.ops[0], ast.Eq | ast.GtE)
        and dotted(one.test.left) in _targets(loop)
        and _is_count(one.test.left, env)
    ]


def _there(around: Around, node: ast.expr, env: Env) -> str | None:
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
    code = ast.unparse(loops[-1].iter)
    length = _steps(around, loops[-1])
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
    items = [
        value
        for name, held in inside.items()
        for value in held
        if value.op == "item" and value.detail != ENDLESS and name in _targets(loop)
    ]
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
