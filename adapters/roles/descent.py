"""Where a training step goes backward, and where the head's loss has to join its loss."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..analysis.names import OWN
from ..analysis.values import BACKWARD, Flow, Place, Value, dotted, place_of
from .findings import Lacking, Missing

SCALES = ("Div", "Mult")


@dataclass(frozen=True)
class Descent:
    """The step's end.

    Attributes:
        place: The statement that the head's lines go before.
        loss: What goes backward, before it is scaled: a name, or an expression that ``replaced`` names.
        backward: Where it goes backward.
        after: The last statement under ``autocast``, that the head's lines go after; ``None`` to go before ``place``.
        replaced: The expression to replace with the sum, where it is no name.
        value: The loss.
        optimizer: Name of what steps.
        note: How it is scaled.
    """

    place: Place
    loss: str
    backward: Place
    value: Value
    optimizer: str
    after: ast.stmt | None = None
    replaced: ast.expr | None = None
    note: str = ""


def find_descent(flow: Flow) -> Descent:
    """The end of the step that trains the student.

    Raises:
        Lacking: There is no backward pass, or several of different losses.
    """
    sites = _sites(flow)
    if not sites:
        raise Lacking(
            Missing("backward", "no call of backward() in a loop that the script reaches", by_hand="loss.backward()")
        )
    roots = [_root(loss, place) for place, loss in sites]
    codes = {ast.unparse(root) for root in roots}
    if len(codes) > 1:
        near = [(place.statement.lineno, ast.unparse(place.statement)) for place, _ in sites]
        raise Lacking(
            Missing("backward", f"{len(sites)} backward passes of different losses: {', '.join(sorted(codes))}", near)
        )
    place, root = sites[0][0], roots[0]
    if len(sites) > 1:
        place = _common(flow, [site for site, _ in sites])
    if not dotted(root) and not isinstance(root, ast.Subscript):
        return _of_expression(flow, place, root, sites[0][0])
    loss = ast.unparse(root)
    target = _before(flow, place, loss)
    value = _evaluate(root, target)
    note = "before it is scaled" if target.statement is not place.statement and _scales(target.statement, loss) else ""
    return Descent(target, loss, sites[0][0], value, _optimizer(flow, sites[0][0]), _autocast(target, loss), note=note)


def within(flow: Flow, descent: Descent) -> Descent | None:
    """The same end, in the function that returns the loss: a training step of its own, such as ``training_step``."""
    block = descent.place.block
    above = block[: list(block).index(descent.place.statement)]
    made = [one for one in above if isinstance(one, ast.Assign) and _assigns(one, descent.loss)]
    call = made[-1].value if made else None
    name = dotted(call.func).removeprefix(OWN) if isinstance(call, ast.Call) else ""
    returns = {
        id(place.statement): place
        for place in flow.places
        if place.function == name and isinstance(place.statement, ast.Return) and place.statement.value is not None
    }
    if not name or len(returns) != 1:
        return None
    (place,) = returns.values()
    returned = place.statement.value  # type: ignore[attr-defined]
    target = made[-1].targets[0]
    if isinstance(target, ast.Tuple) and isinstance(returned, ast.Tuple):  # loss, logs = self.training_step(...)
        which = next((n for n, one in enumerate(target.elts) if ast.unparse(one) == descent.loss), len(returned.elts))
        returned = returned.elts[which] if which < len(returned.elts) else returned
    value = _evaluate(returned, place)
    if isinstance(returned, ast.Name):
        return replace(descent, place=place, loss=returned.id, value=value, after=None, note=f"returned by {name}()")
    if not isinstance(returned, ast.BinOp | ast.Call) or "loss" in place.env:
        return None
    return replace(
        descent, place=place, loss="loss", value=value, after=None, replaced=returned, note=f"returned by {name}()"
    )


def _of_expression(flow: Flow, place: Place, root: ast.expr, backward: Place) -> Descent:
    names = {node.id for node in ast.walk(root) if isinstance(node, ast.Name)}
    target = _before(flow, place, "")
    total = "loss" if "loss" not in names and "loss" not in place.env else "loss_with_brpg"
    if not isinstance(root, ast.BinOp | ast.Call):
        raise Lacking(Missing("loss", f"`{ast.unparse(root)}` goes backward; expected a name or a sum"))
    value = Value("compute", tuple(place.env[name] for name in names if name in place.env), "Add", root)
    return Descent(
        target, total, backward, value, _optimizer(flow, backward), replaced=root, note="the sum gets a name"
    )


def _sites(flow: Flow) -> list[tuple[Place, ast.expr]]:
    """Statements that go backward, with what goes; each once, and those of a loss of labeled images only."""
    found: dict[int, tuple[Place, ast.expr]] = {}
    for place in flow.places:
        loss = _goes_backward(place)
        if loss is not None and id(place.statement) not in found and _value_of(loss, place) is not None:
            found[id(place.statement)] = (place, loss)
    return list(found.values())


def _goes_backward(place: Place) -> ast.expr | None:
    statement = place.statement
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr not in BACKWARD:
        return None
    receiver = call.func.value
    if call.args and not _has_forward(_evaluate(receiver, place)):
        return call.args[0]  # accelerator.backward(loss)
    return receiver


def _value_of(loss: ast.expr, place: Place) -> Value | None:
    value = _evaluate(_root(loss, place), place)
    return value if _has_forward(value) else None


def _evaluate(node: ast.AST, place: Place) -> Value:
    """A rough value: of the names in an expression."""
    name = dotted(node)
    if name in place.env:
        return place.env[name]
    names = [inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)]
    return Value("compute", tuple(place.env[name] for name in names if name in place.env), None, node)


def _has_forward(value: Value) -> bool:
    return any(inner.op == "forward" for inner in value)


def _root(node: ast.expr, place: Place) -> ast.expr:
    """What is behind scaling: ``loss`` in ``scaler.scale(loss / n)``."""
    scaled = _behind_scaler(node)
    if scaled is not None:
        return _root(scaled, place)
    if isinstance(node, ast.BinOp) and type(node.op).__name__ in SCALES:
        sides = [side for side in (node.left, node.right) if _has_forward(_evaluate(side, place))]
        return _root(sides[0], place) if len(sides) == 1 else node
    held = place.env.get(node.id) if isinstance(node, ast.Name) else None
    scaled = _behind_scaler(held.node) if held is not None else None
    if scaled is not None:
        return _root(scaled, place)
    return node


def _behind_scaler(node: ast.AST | None) -> ast.expr | None:
    """``x`` of ``scaler.scale(x)``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        return node.args[0] if node.func.attr in ("scale", "scale_loss") else None
    return None


def _common(flow: Flow, sites: Sequence[Place]) -> Place:
    """The statement that has all sites in different branches of it, or the first of the sites."""
    chains = [[statement for statement, _ in site.around] + [site.statement] for site in sites]
    shared = 0
    while all(len(chain) > shared + 1 and chain[shared] is chains[0][shared] for chain in chains):
        shared += 1
    statement = chains[0][shared - 1] if shared else chains[0][0]
    if not isinstance(statement, ast.If):
        near = [(site.statement.lineno, ast.unparse(site.statement)) for site in sites]
        raise Lacking(Missing("backward", f"{len(sites)} backward passes in one step", near))
    return place_of(flow, statement)


def _before(flow: Flow, place: Place, loss: str) -> Place:
    """The statement that the head's lines go before: above scaling, and above the clearing of gradients next to it."""
    block, target = place.block, list(place.block).index(place.statement)
    for index in range(target - 1, -1, -1):
        statement = block[index]
        if (index == target - 1 and _clears(statement)) or (loss and _scales(statement, loss)):
            target = index
        elif loss and _assigns(statement, loss):
            inside = _scaled_inside(statement, loss)
            return place_of(flow, inside) if inside is not None else place_of(flow, block[target])
    above = place.around[-1][0] if place.around else None
    assigned = not loss or any(_assigns(statement, loss) for statement in block[: target + 1])
    if not assigned and isinstance(above, ast.If | ast.With):
        return _before(flow, place_of(flow, above), loss)
    return place_of(flow, block[target])


def _autocast(target: Place, loss: str) -> ast.stmt | None:
    """The end of a block under ``autocast`` above, where the loss is made: the head's projection runs there too."""
    above = target.block[: list(target.block).index(target.statement)]
    for statement in reversed(above):
        if not _assigns(statement, loss):
            continue
        cast = isinstance(statement, ast.With) and any(
            dotted(getattr(item.context_expr, "func", item.context_expr)).endswith("autocast")
            for item in statement.items
        )
        return statement.body[-1] if cast and isinstance(statement, ast.With) else None
    return None


def _scaled_inside(statement: ast.stmt, loss: str) -> ast.stmt | None:
    found = None
    for inner in reversed(getattr(statement, "body", []) if isinstance(statement, ast.With) else []):
        if _scales(inner, loss):
            found = inner
        elif _assigns(inner, loss):
            break
    return found


def _assigns(statement: ast.stmt, name: str) -> bool:
    return any(
        isinstance(node, ast.Name | ast.Attribute | ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node) == name
        for node in ast.walk(statement)
    )


def _scales(statement: ast.stmt, name: str) -> bool:
    """``loss = loss / n``, ``loss /= n`` and ``scaled = scaler.scale(loss)``."""
    if isinstance(statement, ast.AugAssign):
        return ast.unparse(statement.target) == name and type(statement.op).__name__ in SCALES
    if not isinstance(statement, ast.Assign):
        return False
    value = statement.value
    if (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr == "scale"
        and value.args
    ):
        return ast.unparse(value.args[0]) == name
    to_itself = len(statement.targets) == 1 and ast.unparse(statement.targets[0]) == name
    if not to_itself or not isinstance(value, ast.BinOp) or type(value.op).__name__ not in SCALES:
        return False
    return name in (ast.unparse(value.left), ast.unparse(value.right))


def _clears(statement: ast.stmt) -> bool:
    """Whether a statement does nothing but clear gradients."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        function = statement.value.func
        return isinstance(function, ast.Attribute) and function.attr == "zero_grad"
    inner = getattr(statement, "body", None)
    return (
        isinstance(statement, ast.If | ast.For)
        and bool(inner)
        and not statement.orelse
        and all(map(_clears, statement.body))
    )


def _optimizer(flow: Flow, backward: Place) -> str:
    """What steps after the backward pass: ``optimizer`` of ``optimizer.step()`` or ``scaler.step(optimizer)``."""
    at = flow.places.index(backward)
    for place in flow.places[at:]:
        if place.function != backward.function:
            continue
        for node in ast.walk(place.statement) if not hasattr(place.statement, "body") else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "step":
                return (
                    dotted(node.args[0]) if node.args and dotted(node.args[0]) in place.env else dotted(node.func.value)
                )
    raise Lacking(Missing("optimizer", "no optimizer.step() after the backward pass", by_hand="optimizer.step()"))
