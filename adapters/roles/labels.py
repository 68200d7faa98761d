"""Labels, and the images that they belong to."""

from __future__ import annotations

import ast

from ..analysis.kinds import LABEL, is_data, nature
from ..analysis.values import Place, Value
from ..analysis.views import View, plain
from .findings import CERTAIN, LIKELY, Lacking, Missing, code_of
from .sight import Sight, flat, items, text


def find_labels(sight: Sight, student: str) -> tuple[str, View]:
    """Labels, and the images that they belong to."""
    terms, unlabeled = [], set[int]()
    for value, place in sight.calls:
        arguments = list(flat(value)) if value.op == "call" else []
        views = [sight.trained(argument, student) for argument in arguments]
        single = [found for found in views if found is not None and len(found.parts) == 1]
        data = [argument for argument in arguments if is_data(argument, argument) and not sight.is_image(argument)]
        if single and any(nature(argument) == LABEL for argument in arguments):
            unlabeled |= items(single[0].images[0])
        elif single:
            terms += [(one, single[0], place) for one in data]
    own = [term for term in terms if not items(term[0]) & unlabeled]
    named = [(code_of(label, sight.target, place.env), label, seen, place) for label, seen, place in own or terms]
    usable = [entry for entry in named if entry[0] is not None]
    if not usable:
        near = [(place.statement.lineno, ast.unparse(place.statement).splitlines()[0]) for _, _, place in terms]
        reason = "no call takes predictions of the student and data of a loader that is no image"
        raise Lacking(Missing("labels", reason, near, "LabeledBatch(features=..., logits=..., labels=LABELS)"))
    code, label, seen, place = usable[-1]
    _same_loader(sight, str(code), label, seen, place)
    sure = CERTAIN if len({id(plain(entry[1])) for entry in usable}) == 1 else LIKELY
    sight.findings.add(
        "labels", str(code), place.statement.lineno, sure, f"in `{ast.unparse(place.statement).splitlines()[0]}`"
    )
    return str(code), seen


def _same_loader(sight: Sight, code: str, label: Value, seen: View, place: Place) -> None:
    images, labels = items(seen.images[0]), items(label)
    if images and labels and not images & labels:
        name = text(seen.images[0])
        reason = f"`{code}` meets predictions of `{name}`, of another loader: pass and loss differ in their order"
        raise Lacking(
            Missing("labels", reason, [(place.statement.lineno, ast.unparse(place.statement).splitlines()[0])])
        )
