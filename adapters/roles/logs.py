"""Where a script writes its numbers."""

from __future__ import annotations

import ast

from ..analysis.values import Place, dotted
from .around import Around, Insertion, Surroundings

WRITES = ("log", "log_metrics", "log_dict")


def find_logging(around: Around, found: Surroundings) -> None:
    """Lines after the last number that a step writes."""
    inner = [statement for statement, _ in around.target.around if isinstance(statement, ast.For | ast.While)]
    outer = [statement for statement, _ in around.target.around]
    inside = [
        place
        for place in around.flow.places
        if place.function == around.target.function and inner and inner[-1] in [s for s, _ in place.around]
    ]
    after = [place for place in inside if place.statement.lineno > around.target.statement.lineno]
    calls = [
        (place, place.statement.value)
        for place in after
        if isinstance(place.statement, ast.Expr) and isinstance(place.statement.value, ast.Call)
    ]
    scalars = [
        (place, call)
        for place, call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_scalar"
    ]
    if scalars:
        place, call = scalars[-1]
        step = (
            call.args[2]
            if len(call.args) > 2
            else next((k.value for k in call.keywords if k.arg == "global_step"), None)
        )
        writer = ast.unparse(call.func.value)  # type: ignore[attr-defined]
        code = f"brpg.log({writer}, {ast.unparse(step) if step is not None else found.names['iteration']})"
        loops = [one for one, _ in place.around if isinstance(one, ast.For | ast.While) and one not in outer]
        found.insertions.append(Insertion(loops[0] if loops else place.statement, code, before=False))
        around.findings.add("logging", writer, place.statement.lineno)
        return
    metrics = [
        (place, call)
        for place, call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in WRITES and _takes_numbers(call, place)
    ]
    if metrics:
        place, call = metrics[-1]
        step = next((k.value for k in call.keywords if k.arg == "step"), None)
        how = (
            f"step={ast.unparse(step)}"
            if step is not None
            else ("commit=False" if dotted(call.func) == "wandb.log" else "")
        )
        code = f"{ast.unparse(call.func)}({', '.join(filter(None, ('brpg.scalars()', how)))})"
        found.insertions.append(Insertion(place.statement, code, before=True))
        around.findings.add("logging", ast.unparse(call.func), place.statement.lineno)
        return
    around.findings.lack(
        "logging",
        "no add_scalar() or log({...}) after the step",
        by_hand="print(brpg.scalars())  # after optimizer.step()",
    )


def _takes_numbers(call: ast.Call, place: Place) -> bool:
    first = call.args[0] if call.args else None
    held = place.env.get(dotted(first)) if first is not None else None
    return isinstance(first, ast.Dict) or (held is not None and held.op in ("dict", "call"))
