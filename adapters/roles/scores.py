"""What a validation says, for ``brpg compare``."""

from __future__ import annotations

import ast

from ..analysis.values import Place, dotted
from .around import Around, Insertion, Surroundings, names_in


def find_scores(around: Around, found: Surroundings) -> None:
    """The validation's scores, for ``brpg compare``."""
    scores = _validated(around) or _best(around)
    if scores is None:
        around.findings.lack(
            "scores",
            "no number is compared with the best so far",
            by_hand="brpg.record(FOLDER, epoch, MIOU, settings={})",
        )
        return
    score, others, statement = scores
    found.names |= {"score": score} | ({"others": others[0]} if others else {})
    around.findings.add("scores", score, statement.lineno)
    around.scored = _after_scores(around, score, statement)


def _epoch_places(around: Around) -> list[Place]:
    """Statements after the steps of an epoch, that each epoch comes by."""
    at = around.flow.places.index(around.target)
    inner = {id(statement) for statement, _ in around.target.around} - {
        id(statement) for statement, _ in around.main.around
    }
    return [
        place
        for place in around.flow.places[at + 1 :]
        if place.function == around.main.function
        and around.loop.statement in [statement for statement, _ in place.around]
        and not inner & {id(statement) for statement, _ in place.around} - {id(around.loop.statement)}
    ]


def _validated(around: Around) -> tuple[str, list[str], ast.stmt] | None:
    """``score, ... = evaluate(model, ...)``: the last one of which a number counts."""
    networks = {name for name in around.flow.networks if name in around.main.env}
    found: tuple[str, list[str], ast.stmt] | None = None
    for place in _epoch_places(around):
        statement = place.statement
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
            continue
        call, target = statement.value, statement.targets[0]
        validates = dotted(call.func).rpartition(".")[2].startswith(("eval", "val", "test"))
        if not validates or not any(networks & names_in(arg) for arg in call.args):
            continue
        names = [ast.unparse(one) for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
        numbers = [name for name in names if _is_compared(around, name)]
        if numbers:
            found = numbers[0], [name for name in names if name != numbers[0]], statement
    return found


def _best(around: Around) -> tuple[str, list[str], ast.stmt] | None:
    """A number that is made after the steps of an epoch, and compared with another there."""
    made = [(name, place.statement) for place in _epoch_places(around) for name in _bound(place.statement)]
    new = [(name, statement) for name, statement in made if name not in around.target.env]
    numbers = [(name, statement) for name, statement in new if _is_compared(around, name)]
    if not numbers:
        return None
    score, statement = numbers[-1]
    env = _epoch_places(around)[-1].env
    base = env[score].args[0] if score in env and env[score].op == "part" else None
    others = [name for name, held in env.items() if name != score and held.op == "part" and held.args[0] is base]
    return score, others, next((last for name, last in reversed(made) if name in (score, *others)), statement)


def _is_compared(around: Around, name: str) -> bool:
    """Whether the script compares a number, or one of several, with another."""
    for place in around.flow.places[around.flow.places.index(around.loop) :]:
        for node in ast.walk(place.statement):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            sides += node.args if isinstance(node, ast.Call) and dotted(node.func) == "max" else []
            if any(_named(side) == name for side in sides):
                return True
    return False


def _after_scores(around: Around, score: str, statement: ast.stmt) -> Insertion:
    """Where the scores are written: after they are logged, or where they are made."""
    logged = [
        place.statement
        for place in _epoch_places(around)
        if isinstance(place.statement, ast.Expr) and _logs(place.statement.value, score)
    ]
    return Insertion(logged[0] if logged else statement, "", before=False)


def _bound(statement: ast.stmt) -> list[str]:
    """The name, or the entry of a mapping, that a statement binds alone."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return [_named(target) for target in targets if isinstance(target, ast.Name) or _is_entry(target)]


def _is_entry(node: ast.expr) -> bool:
    """``row["miou"]``."""
    key = node.slice if isinstance(node, ast.Subscript) else None
    return isinstance(key, ast.Constant) and isinstance(key.value, str)


def _named(node: ast.expr) -> str:
    """What a number is called: the name of one of several, of an entry with its key."""
    if _is_entry(node):
        return ast.unparse(node)
    return dotted(node.value if isinstance(node, ast.Subscript) else node)


def _logs(node: ast.expr, score: str) -> bool:
    """``writer.add_scalar(..., score, ...)``."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "add_scalar":
        return False
    return len(node.args) > 1 and ast.unparse(node.args[1]) == score
