"""Strong views, their pseudo labels, the confidence of those, and pixels that do not count."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence

from ..analysis.kinds import CONFIDENCE, LABEL, counterparts, is_confidence_of, is_data, nature
from ..analysis.values import Place, Value
from ..analysis.views import View, names_of, plain
from .findings import CERTAIN, LIKELY, Lacking, Missing, code_of, line_of, nearest
from .parts import Step, Strong
from .sight import Sight, flat


def find_strong(sight: Sight, step: Step) -> list[Strong]:
    """Strong views, with what belongs to them."""
    terms: dict[tuple[int, int], tuple[View, Value, Place]] = {}
    for value, place in sight.calls:
        arguments = list(flat(value)) if value.op == "call" else []
        seen = [
            found for found in (sight.trained(argument, step.student) for argument in arguments) if found is not None
        ]
        seen = [found for found in seen if found.is_main and len(found.parts) == 1]
        pseudo = [argument for argument in arguments if nature(argument) == LABEL]
        if seen and pseudo:
            key = (id(seen[0].forward), seen[0].parts[0])
            before = terms.get(key)
            if before is None or len(place.around) < len(before[2].around):
                terms[key] = (seen[0], pseudo[0], place)
    if not terms:
        _no_pseudo_labels(sight)
    order = [id(one.value) for one in step.passes]
    ranked = sorted(terms.values(), key=lambda term: (order.index(id(term[0].forward)), term[0].parts))
    return [_strong(sight, *term) for term in ranked]


def _no_pseudo_labels(sight: Sight) -> None:
    held = [(line_of(value), name) for name, value in sight.target.env.items() if nature(value) == LABEL]
    reason = "no call takes predictions of the student and classes that a network found most probable (argmax, max)"
    by_hand = "confidence, pseudo_labels = teacher(images).softmax(dim=1).max(dim=1)"
    raise Lacking(Missing("pseudo labels", reason, held[-3:], by_hand))


def _strong(sight: Sight, seen: View, pseudo: Value, place: Place) -> Strong:
    code = code_of(pseudo, sight.target, place.env)
    unfiltered = [arg for arg in plain(pseudo).args if nature(arg) == LABEL] if plain(pseudo).op == "call" else []
    if len(unfiltered) == 1 and not _confident(
        sight, pseudo
    ):  # some are left out of the loss; the head decides by confidence
        return _strong(sight, seen, unfiltered[0], place)
    if code is None:
        where = f"{place.function}(), line {place.statement.lineno}"
        near = [(line_of(value), name) for name, value in sight.target.env.items() if nature(value) == LABEL]
        reason = f"they are used in {where}, and no name holds them where `{sight.descent.loss}` goes backward"
        raise Lacking(Missing("pseudo labels", reason, near, "return them too, and name them before the backward pass"))
    note = f"in `{ast.unparse(place.statement).splitlines()[0][:80]}`"
    sight.findings.add("pseudo labels", code, place.statement.lineno, note=note)
    confidence = _confidence(sight, code, pseudo)
    ignore = _ignored(sight, code, pseudo)
    return Strong(seen, code, confidence, ignore, pseudo)


def _confident(sight: Sight, pseudo: Value) -> list[str]:
    """Names that hold the confidence of pseudo labels."""
    env = sight.target.env
    return [
        name
        for name, held in env.items()
        if nature(held) == CONFIDENCE and counterparts(pseudo, held, is_confidence_of)
    ]


def _confidence(sight: Sight, code: str, pseudo: Value) -> str:
    env = sight.target.env
    fitting = _confident(sight, pseudo)
    if fitting:
        name = fitting[-1] if len(fitting) == 1 else _closest(code, fitting, pseudo, env)
        sure = CERTAIN if len({id(plain(env[other])) for other in fitting}) == 1 else LIKELY
        return sight.findings.add("confidence", name, line_of(env[name]), sure, f"made as `{code}` is")
    direct = plain(pseudo)
    logits = plain(direct.args[0]) if direct.op == LABEL else None
    held = names_of(direct.args[0], sight.target.env) if logits is not None else []
    if logits is not None and held and env[held[0]].op != "same":
        made = f"{held[0]}.softmax(dim=1).amax(dim=1)"
        return sight.findings.add("confidence", made, line_of(direct), LIKELY, f"of the logits that `{code}` is of")
    others = [name for name, value in env.items() if nature(value) == CONFIDENCE]
    reason = f"no name holds the probability of `{code}`, mixed as `{code}` is"
    by_hand = f"confidence = ...  # made as `{code}`, with .max(dim=1)[0] for .argmax(dim=1)"
    raise Lacking(Missing("confidence", reason, nearest(code, env, others), by_hand))


def _ignored(sight: Sight, code: str, pseudo: Value) -> str:
    env = sight.target.env
    marked = {id(value) for value in _marked(sight, pseudo)}
    fitting = [name for name, held in env.items() if counterparts(pseudo, held, is_data) and not sight.is_image(held)]
    fitting = [name for name in fitting if any(id(inner) in marked for inner in env[name])]
    if not fitting:
        return ""
    name = _closest(code, fitting, pseudo, env)
    return sight.findings.add("ignored pixels", name, line_of(env[name]), note=f"255 in padding, mixed as `{code}` is")


def _marked(sight: Sight, pseudo: Value) -> list[Value]:
    """Data that is compared with 255, or that a loss takes beside pseudo labels or confidence."""
    found = [plain(value) for value, number in sight.flow.compared if number == 255]
    for value, _ in sight.calls:
        arguments = [plain(argument) for argument in flat(value)] if value.op == "call" else []
        if any(argument is plain(pseudo) or counterparts(pseudo, argument, is_confidence_of) for argument in arguments):
            found += [argument for argument in arguments if counterparts(pseudo, argument, is_data)]
    return [value for value in found if is_data(value, value) and not sight.is_image(value)]


def _closest(code: str, names: Sequence[str], pseudo: Value, env: dict[str, Value]) -> str:
    """The name most like that of the pseudo labels, among those that hold the same; the last one bound otherwise."""
    if len({id(plain(env[name])) for name in names}) == 1:
        return names[0]
    return max(names, key=lambda name: difflib.SequenceMatcher(None, name, code).ratio())
