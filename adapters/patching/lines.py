"""The lines of a step, with what a script calls its roles in them."""

from __future__ import annotations

import ast
import io
import string
import tokenize
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..analysis.kinds import nature
from ..analysis.values import Place, Value
from ..analysis.views import layout, names_of, plain, same_batch
from ..roles.findings import Lacking, Missing
from ..roles.holes import hole
from ..roles.parts import Step, Strong, Weak
from .found import Found

NONE = "\0"
"""Stands for a value that a script does not have: lines with it are left out."""
ENDING = """    $ignored
    $loss = $loss + brpg(
        LabeledBatch(features=rep_x, logits=$logits_l, labels=$labels),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=$pseudo,
            confidence=$confidence,
            $weak
        ),
        iteration=$iteration
    )
"""
"""How the lines for any passes end, where a family has no other ending."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The lines of one training script of a family, with ``$slots`` for what its roles are called.

    Attributes:
        passes: The batches of the student's training passes that ``step`` is for: ``x`` labeled, ``w`` weak,
            ``s`` strong, ``+`` with further arguments.
        step: Adds the head's loss.
    """

    passes: Sequence[str]
    step: str


def filled(template: str, slots: Mapping[str, str]) -> str:
    """A family's lines with the roles of a script in them; lines without a value are left out."""
    text = string.Template(template).substitute(slots)
    return "\n".join(line for line in text.split("\n") if NONE not in line) if NONE in text else text


def quoted(code: str, quote: str) -> str:
    """Code with strings in these quotes, where that needs no escapes.

    >>> quoted("a['b']", '"')
    'a["b"]'
    """
    other = '"' if quote == "'" else "'"
    tokens = []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        text = token.string
        if (
            token.type == tokenize.STRING
            and text[0] == other
            and text[:3] != other * 3
            and quote not in text
            and "\\" not in text
        ):
            text = quote + text[1:-1] + quote
        tokens.append((token.type, text, token.start, token.end, token.line))
    return tokenize.untokenize(tokens).strip()


class Sizes:
    """Code for numbers of images in the parts of a batch."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def of(self, images: Value) -> str:
        """How many images there are."""
        found = [
            name
            for name, held in self.place.env.items()
            if held.op == "size" and held.detail == 0 and plain(held.args[0]) is plain(images)
        ]
        names = names_of(images, self.place.env)
        if found:
            return found[0]
        alike = [
            name
            for name, held in self.place.env.items()
            if held.op == "size" and held.detail == 0 and same_batch(held.args[0], images)
        ]
        if alike:
            return alike[0]
        if names:
            return f"len({names[0]})"
        items = [name for name, held in self.place.env.items() if _unpacked(held) and same_batch(held, images)]
        if items:
            return f"len({items[0]})"
        text = ast.unparse(images.node) if isinstance(images.node, ast.expr) else "images"
        reason = f"no name holds `{text}`, or another tensor of that batch, where the loss goes backward"
        hint = "return the images of that pass too, and name them before the backward pass"
        raise Lacking(Missing("images", reason, by_hand=hint))

    def part(self, forward: Value, part: int) -> str:
        """Slice of one part of a pass's batch."""
        counts = [self.of(images) for images in layout(forward)[: part + 1]]
        end = " + ".join(counts)
        return f"[:{end}]" if part == 0 else f"[{' + '.join(counts[:part])}:{end}]"


def _unpacked(value: Value) -> bool:
    """Whether a value is a tensor of a loader's item, as it was unpacked: with one row per image."""
    value = plain(value)
    told = value.op == "part" and (bool(value.detail[1]) or isinstance(value.detail[0], str))
    return told and plain(value.args[0]).op == "item"


def signature(step: Step) -> tuple[str, ...]:
    """The batches of the student's passes, as in :class:`Lines`."""
    strong = {(id(one.view.forward), one.view.parts[0]) for one in step.strong}
    assert step.labeled is not None
    labeled = (id(step.labeled.forward), step.labeled.parts[0])
    weak = (id(step.weak.forward), step.weak.part) if step.weak is not None else None
    found = []
    for one in step.passes:
        kinds = []
        for part in range(len(one.parts)):
            key = (id(one.value), part)
            kinds.append("x" if key == labeled else "s" if key in strong else "w" if key == weak else "?")
        more = any(arg.op not in ("cat",) and nature(arg) is None for arg in one.value.args[2:])
        found.append(" ".join(kinds) + (" +" if more else ""))
    return tuple(found)


def step_slots(found: Found) -> dict[str, str]:
    """Slots of a step's lines."""
    step = found.step
    sizes = Sizes(step.descent.place)
    slots = {
        "loss": step.descent.loss,
        "labels": step.labels or hole("labels"),
        "iteration": found.surroundings.names["iteration"],
    }
    slots |= {"n_l": NONE, "n_w": NONE}
    if step.labeled is not None:
        with found.findings.bearing():
            slots["n_l"] = sizes.of(step.labeled.images[0])
    if step.weak is not None:
        with suppress(Lacking):
            slots["n_w"] = sizes.of(layout(step.weak.forward)[step.weak.part])
        slots["valid"] = f", valid={step.weak.valid} != 255" if step.weak.valid else ""
    return slots | _pseudo_slots(step.strong)


def plugin_slots(found: Found) -> dict[str, str]:
    """Slots of the lines that make the plug-in."""
    names, weak, student = found.surroundings.names, found.step.weak, found.step.student
    listened = weak.network if weak is not None and weak.source == "listened" else ""
    return {
        **{name: names[name] for name in ("epochs", "length", "net", "optimizer")},
        "model": found.around.main_name(student),
        "move": found.around.move(),
        "teacher": f", teacher={found.around.main_name(listened)}" if listened else "",
        "average": ", teacher=True" if listened and listened != student else "",
    }


def with_sum(found: Found, step: str, quote: str = "'") -> str:
    """The step's lines, after a name for what goes backward where that is an expression."""
    descent = found.step.descent
    if descent.replaced is None:
        return step
    return f"\n{descent.loss} = {quoted(ast.unparse(descent.replaced), quote)}{step}"


def _pseudo_slots(strong: Sequence[Strong]) -> dict[str, str]:
    """Pseudo labels and confidence of all strong views."""
    if not strong:
        return {"pseudo": hole("pseudo"), "confidence": hole("confidence"), "ignored": NONE}
    pseudo, confidence = _together([one.pseudo for one in strong]), _together([one.confidence for one in strong])
    ignored = [one.ignore for one in strong]
    if not all(ignored):
        return {"pseudo": pseudo, "confidence": confidence, "ignored": NONE}
    if len(strong) == 1:
        return {"pseudo": f"{pseudo}.masked_fill({ignored[0]} == 255, 255)", "confidence": confidence, "ignored": NONE}
    return {
        "pseudo": f"{pseudo}.masked_fill(ignore_s, 255)",
        "confidence": confidence,
        "ignored": f"ignore_s = {_together(ignored)} == 255",
    }


def _together(codes: Sequence[str]) -> str:
    return codes[0] if len(codes) == 1 else f"torch.cat(({', '.join(codes)}))"


def general_step(found: Found, ending: str) -> str:
    """Lines for passes that no family has: each part of each batch by its place."""
    step = found.step
    sizes = Sizes(step.descent.place)
    order = [id(one.value) for one in step.passes]
    numbers = [f"_{number}" if len(order) > 1 else "" for number in range(1, len(order) + 1)]
    taken = {f"{kind}{number}" for kind in ("feat", "logits") for number in numbers} & step.descent.place.env.keys()
    if taken:  # names that the script has already
        numbers = [f"_tap{number}" for number in numbers]

    def part(kind: str, forward: Value, which: int, name: str = "strong") -> str:
        cut = f"[{hole(name)}]"
        with found.findings.bearing():
            cut = sizes.part(forward, which)
        return f"{kind}{numbers[order.index(id(forward))]}{cut}"

    def labeled(kind: str) -> str:
        if step.labeled is None:
            return f"{kind}{numbers[0]}[{hole('labeled')}]"
        return part(kind, step.labeled.forward, step.labeled.parts[0], "labeled")

    pairs = ", ".join(f"(feat{number}, logits{number})" for number in numbers) + ("," if len(order) == 1 else "")
    features = labeled("feat")
    strong = [part("feat", one.view.forward, one.view.parts[0]) for one in step.strong]
    together = _together(strong) if strong else f"feat{numbers[-1]}[{hole('strong')}]"
    lines = [
        "if brpg.enabled:",
        f"    {pairs} = brpg.take({len(order)})" if len(order) > 1 else f"    ({pairs}) = brpg.take(1)",
    ]
    lines.append(f"    rep_x, rep_u_s = brpg.project({features}, {together})")
    weak = _weak_view(step.weak, part)
    return "\n" + "\n".join(
        [
            *lines,
            ending.replace("$logits_l", labeled("logits")).replace("$weak", weak),
        ]
    )


def _weak_view(weak: Weak | None, part: object) -> str:
    if weak is None:
        return NONE
    valid = f", valid={weak.valid} != 255" if weak.valid else ""
    if weak.source == "listened":
        return f"**brpg.weak_view(*brpg.take_teacher(){valid})"
    feat, logits = (part(kind, weak.forward, weak.part) for kind in ("feat", "logits"))  # type: ignore[operator]
    return f"**brpg.weak_view({feat}, {logits}{valid})"


def guard_of(place: Place, value: Value) -> str:
    """The condition under which a name is bound, where that is in one branch only."""
    held = next((name for name in names_of(value, place.env)), "")
    bound = place.env.get(held)
    if bound is None or bound.op != "either" or len(bound.args) != 1:
        return ""
    branch, in_body, _ = bound.detail
    test = branch.test
    if in_body:
        return ast.unparse(test)
    opposite = {
        ast.Lt: ast.GtE,
        ast.GtE: ast.Lt,
        ast.Gt: ast.LtE,
        ast.LtE: ast.Gt,
        ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq,
    }
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and type(test.ops[0]) in opposite:
        return ast.unparse(ast.Compare(test.left, [opposite[type(test.ops[0])]()], test.comparators))
    return f"not ({ast.unparse(test)})"
