"""Where a script saves and loads."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..analysis.values import Place, Value, dotted
from ..analysis.views import names_of
from .around import Around, Insertion, Surroundings, is_load, names_in


def find_checkpoints(around: Around, found: Surroundings) -> None:
    """Lines that save the plug-in's state where the script saves, and load it where it resumes."""
    _resume(around, found)
    saves = list(_saves(around))
    for place, path, state, line in saves:
        epoch = _saved_epoch(around, state, place)
        path = _without(path, found.names.get("score", ""))
        found.insertions.append(Insertion(place.statement, f"brpg.save({path}, {epoch})", before=True))
        around.findings.add("checkpoint", path, line, note=f"of {around.unit} `{epoch}`")
        found.names.setdefault("saved", path)
    if not saves:
        reason = "nothing is saved after the step; the prototypes are then lost with the process"
        around.findings.lack("checkpoint", reason, by_hand="brpg.save('latest.pth', epoch)  # before torch.save")


def _resume(around: Around, found: Surroundings) -> None:
    inside = [place for place in _between(around) if isinstance(place.statement, ast.Assign)]
    if around.place.function == "__init__":  # of an object, whose methods all see the plug-in
        inside = [one for one in around.flow.places if "self" in one.env and isinstance(one.statement, ast.Assign)]
    for place in inside:
        statement = place.statement
        assert isinstance(statement, ast.Assign)
        call = statement.value
        epoch = _loaded_epoch(around, statement) if is_load(call) else None
        if epoch is None or not isinstance(call, ast.Call):
            continue
        path = ast.unparse(call.args[0])
        found.insertions.append(Insertion(statement, f"brpg.load({path}, {epoch})", before=False))
        around.findings.add("resume", path, statement.lineno, note=f"at {around.unit} `{epoch}`")
        found.resumes_with = call
        return
    near = [
        (place.statement.lineno, ast.unparse(place.statement))
        for place in around.flow.places
        if place.function == around.place.function
        and isinstance(place.statement, ast.Assign)
        and is_load(place.statement.value)
        and _loaded_epoch(around, place.statement) is not None
    ]
    elsewhere = [
        (place.statement.lineno, ast.unparse(place.statement))
        for place in around.flow.places
        if isinstance(place.statement, ast.Assign)
        and is_load(place.statement.value)
        and _loaded_epoch(around, place.statement) is not None
    ]
    if elsewhere and not near:
        reason = "the script loads an epoch in another function than the one in which the plug-in is made"
        by_hand = "brpg.load(PATH, EPOCH)  # after brpg is made, before the loop over epochs"
        around.findings.lack("resume", reason, near=elsewhere[:1], by_hand=by_hand)
    elif near:
        reason = "the script resumes before networks and optimizer are what the training uses"
        by_hand = "brpg.load(PATH, EPOCH)  # after brpg is made"
        around.findings.lack("resume", reason, near=near, by_hand=by_hand)
    else:
        around.findings.lack(
            "resume",
            "the script loads no checkpoint with an epoch; a resumed run starts without prototypes",
            by_hand="brpg.load(PATH, EPOCH)",
        )


def _between(around: Around) -> list[Place]:
    """Places after the plug-in is made and before the loop."""
    start, end = around.flow.places.index(around.place), around.flow.places.index(around.loop)
    return [place for place in around.flow.places[start:end] if place.function == around.place.function]


def _loaded_epoch(around: Around, statement: ast.Assign) -> str | None:
    """Code of the epoch in what a statement loads."""
    (target, *_) = statement.targets
    first = (
        around.loop.statement.iter.args[0]
        if isinstance(around.loop.statement, ast.For)
        and isinstance(around.loop.statement.iter, ast.Call)
        and around.loop.statement.iter.args
        else None
    )
    starts = {node.id for node in ast.walk(first) if isinstance(node, ast.Name)} if first is not None else set()
    if isinstance(target, ast.Tuple):
        names = [ast.unparse(element) for element in target.elts]
        return next((name for name in names if name in starts), None)
    name = ast.unparse(target)
    keys = [key for place in around.flow.places for key in _keys(place.statement, name)]
    saved = (
        [
            key
            for _, _, state, _ in _saves(around)
            for inner in state or ()
            if inner.op == "dict"
            for key in inner.detail
        ]
        if None in keys
        else []
    )
    texts = [key for key in (*keys, *saved) if isinstance(key, str) and "best" not in key.lower()]
    words = ("epoch", "iter", "step") if around.counted else ("epoch",)
    return next((f"{name}[{key!r}]" for key in texts if any(word in key.lower() for word in words)), None)


def _saves(around: Around) -> Iterator[tuple[Place, str, Value | None, int]]:
    """Statements of the training loop that save, with path and state; in own functions, the calls of those."""
    seen = set()
    for place in around.flow.places[around.flow.places.index(around.loop) :]:
        statement = place.statement
        call = statement.value if isinstance(statement, ast.Expr) else None
        if not isinstance(call, ast.Call) or id(statement) in seen or not _is_save(call):
            continue
        seen.add(id(statement))
        own = around.own and "self" in place.env
        if own or place.depth == around.main.depth or place.function == around.target.function:
            path = ast.unparse(call.args[1])
            yield place, path, place.env.get(dotted(call.args[0])), statement.lineno
        else:
            yield from _caller(around, place, call)


def _caller(around: Around, place: Place, call: ast.Call) -> Iterator[tuple[Place, str, Value | None, int]]:
    at = around.flow.places.index(place)
    callers = [
        other
        for other in around.flow.places[:at]
        if other.depth == around.main.depth and not hasattr(other.statement, "body")
    ]
    if not callers or dotted(call.args[1]) not in place.env:
        return
    caller, wanted = callers[-1], place.env[dotted(call.args[1])]
    for node in ast.walk(caller.statement):
        if isinstance(node, ast.Call) and dotted(node.func) == place.function:
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                if wanted.node is argument or (
                    names_of(wanted, {"_": caller.env.get(dotted(argument), wanted)}) and dotted(argument)
                ):
                    yield (
                        caller,
                        ast.unparse(argument),
                        place.env.get(dotted(call.args[0])),
                        caller.statement.lineno,
                    )
                    return


def _saved_epoch(around: Around, state: Value | None, place: Place) -> str:
    for inner in state or ():
        for key, value in zip(inner.detail, inner.args, strict=True) if inner.op == "dict" else ():
            if key == "epoch" and isinstance(value.node, ast.expr):
                return _epoch_code(around, inner, value, place)
    return around.epoch_name()


def _epoch_code(around: Around, state: Value, value: Value, place: Place) -> str:
    assert isinstance(state.node, ast.Dict)
    for key, node in zip(state.node.keys, state.node.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "epoch":
            return ast.unparse(node)
    return names_of(value, place.env)[0]


def _is_save(call: ast.Call) -> bool:
    return (
        dotted(call.func).rpartition(".")[2] == "save"
        and len(call.args) >= 2
        and dotted(call.func).split(".")[0] not in ("np", "brpg")
    )


def _keys(statement: ast.stmt, name: str) -> Iterator[str | None]:
    """Keys that a statement reads of a dictionary; ``None`` for one that is no constant."""
    for node in ast.walk(statement) if not hasattr(statement, "body") else ():
        if isinstance(node, ast.Subscript) and dotted(node.value) == name:
            yield str(node.slice.value) if isinstance(node.slice, ast.Constant) else None
        if (
            isinstance(node, ast.Call)
            and dotted(node.func) == f"{name}.get"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def _without(path: str, score: str) -> str:
    """A path whose last part names a score, with the name ``best.pth`` there: of several checkpoints, one is kept."""
    call = ast.parse(path, mode="eval").body
    if not isinstance(call, ast.Call) or len(call.args) < 2 or score not in names_in(call.args[-1]):
        return path
    return ast.unparse(ast.Call(call.func, [*call.args[:-1], ast.Constant("best.pth")], []))
