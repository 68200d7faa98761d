"""What kind of map a value is, and which maps belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .values import Value
from .views import plain, view

LABEL, CONFIDENCE, DATA = "label", "confidence", "data"


def nature(value: Value) -> str | None:
    """What kind of map a value is: pseudo labels, their confidence, or data of a loader."""
    return _nature(value, {})


def _nature(value: Value, known: dict[int, str | None]) -> str | None:
    if id(value) not in known:
        known[id(value)] = None
        known[id(value)] = _find_nature(value, known)
    return known[id(value)]


def _find_nature(value: Value, known: dict[int, str | None]) -> str | None:
    if value.op in (LABEL, CONFIDENCE):
        return value.op if _from_forward(value) else None
    if value.op == "item":
        return DATA
    if value.op in ("same", "detach", "stored", "slice", "each", "indexed"):
        return _nature(value.args[-1 if value.op == "each" else 0], known)
    if value.op == "part":
        return _part_nature(value, known)
    if value.op in ("either", "cat", "tuple"):
        kinds = {_nature(arg, known) for arg in value.args}
        return kinds.pop() if len(kinds) == 1 else None
    if value.op == "call" or (value.op == "compute" and value.detail in ("Add", "Mult", "Sub")):
        if any(found is not None and found.forward.detail[1] for found in map(view, value.args)):
            return None
        kinds = {_nature(arg, known) for arg in value.args} - {None}
        told = kinds - {DATA}
        if len(told) == 1:
            return told.pop()
        return DATA if kinds == {DATA} and not told else None
    return None


def _part_nature(value: Value, known: dict[int, str | None]) -> str | None:
    base, (index, count) = value.args[0], value.detail
    if base.op in ("item", "part", "same"):
        return _nature(base, known)
    if base.op == "each":
        return _nature(base, known)
    if base.op == "call" and isinstance(index, int) and index < count <= len(base.args):
        return _nature(base.args[index], known)  # functions that mix give back what they took, in order
    return None


def _from_forward(value: Value) -> bool:
    return any(inner.op == "forward" for inner in value)


def counterparts(value: Value, other: Value, accept: Callable[[Value, Value], bool]) -> list[tuple[Value, Value]]:
    """Where ``other`` is made the way ``value`` is, the pairs of a pseudo label and what stands in its place.

    Args:
        value: Pseudo labels.
        other: Another map.
        accept: Whether a value may stand in the place of a pseudo label.

    Returns:
        The pairs; none if the two are made in different ways.
    """
    pairs: list[tuple[Value, Value]] = []
    return pairs if _walk(value, other, accept, pairs) else []


def _walk(one: Value, two: Value, accept: Callable[[Value, Value], bool], pairs: list[tuple[Value, Value]]) -> bool:
    one, two = plain(one), plain(two)
    if one.op == LABEL:
        if not accept(one, two):
            return False
        pairs.append((one, two))
        return True
    if one is two:
        return True
    if one.op == "either" and two.op != "either":
        return all(_walk(branch, two, accept, pairs) for branch in one.args)
    if one.op != two.op or len(one.args) != len(two.args):
        return False
    if one.op == "part" and one.args[0] is two.args[0] and one.args[0].op == "call":
        at, other = one.detail[0], two.detail[0]
        inner = one.args[0].args
        whole = isinstance(at, int) and isinstance(other, int) and max(at, other) < len(inner)
        return whole and _walk(inner[at], inner[other], accept, pairs)
    if one.op != "either" and one.detail != two.detail:
        return False
    if not one.args:
        return _same_leaf(one, two)
    return all(_walk(first, second, accept, pairs) for first, second in zip(one.args, two.args, strict=True))


def _same_leaf(one: Value, two: Value) -> bool:
    return one.op in ("const", "import", "name") and one.detail == two.detail


def is_confidence_of(label: Value, other: Value) -> bool:
    """Whether a value is the probability of the class that a pseudo label is."""
    return other.op == CONFIDENCE and plain(label.args[0]) is plain(other.args[0])


def is_data(label: Value, other: Value) -> bool:
    """Whether a value comes from a loader alone."""
    return nature(other) == DATA and not _from_forward(other)


def labels_in(value: Value) -> Sequence[Value]:
    """The pseudo labels that a map is made of, first what it is mixed from, then what is mixed in."""
    return [inner for inner in value if inner.op == LABEL and _from_forward(inner)]
