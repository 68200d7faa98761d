"""Which images a prediction is of, and which names hold a value."""

from __future__ import annotations

from dataclasses import dataclass

from .values import Value

THROUGH = ("same", "detach")


@dataclass(frozen=True, eq=False)
class View:
    """Images that a forward pass's prediction is of.

    Attributes:
        forward: The pass.
        parts: Indices of the parts of its batch.
        output: Which of its outputs; ``None`` for the only one.
    """

    forward: Value
    parts: tuple[int, ...]
    output: object = None

    @property
    def images(self) -> list[Value]:
        """The images, part by part."""
        found = layout(self.forward)
        return [found[part] for part in self.parts]

    @property
    def is_main(self) -> bool:
        """Whether it is the network's first output, and not one for another purpose."""
        return self.output in (None, 0, "pred", "out", "logits", "seg", "output", "sem_seg")


def plain(value: Value) -> Value:
    """The value without changes of device, type, size and gradient; bound in one branch only, the one it has there."""
    while value.op in THROUGH or (value.op == "either" and len(value.args) == 1):
        value = value.args[0]
    return value


def layout(forward: Value) -> list[Value]:
    """The parts of the batch of a forward pass, in order."""
    images = plain(forward.args[1]) if len(forward.args) > 1 else forward
    return [plain(part) for part in _parts(images)]


def _parts(images: Value) -> list[Value]:
    if images.op != "cat":
        return [images]
    return [inner for part in images.args for inner in _parts(plain(part))]


def view(value: Value) -> View | None:
    """The images that a value predicts, if it is a prediction or a part of one."""
    value = plain(value)
    if value.op == "forward":
        return View(value, tuple(range(len(layout(value)))))
    if value.op == "part" and value.args[0].op == "split":
        return _split_part(value)
    if value.op == "part":
        base = view(value.args[0])
        if base is None or base.output is not None or len(base.parts) != len(layout(base.forward)):
            return None
        return View(base.forward, base.parts, value.detail[0])
    if value.op == "slice":
        return _sliced(value)
    return None


def _split_part(value: Value) -> View | None:
    index, count = value.detail
    split = value.args[0]
    base = view(split.args[0])
    if base is None or not isinstance(index, int):
        return None
    sizes = split.args[1] if len(split.args) > 1 else None
    if sizes is not None and sizes.op == "tuple":
        ends = [_size_of(size, base) for size in sizes.args]
        if len(ends) != len(base.parts):
            return None
        for end, part in zip(ends, base.parts, strict=True):
            if end is not None and end != part:
                return None
    elif count != len(base.parts):
        return None
    return View(base.forward, (base.parts[index],), base.output)


def _size_of(size: Value, base: View) -> int | None:
    """Which part of a batch a number of images is that of."""
    if size.op != "size" or size.detail != 0:
        return None
    of = plain(size.args[0])
    images = layout(base.forward)
    hits = [part for part in base.parts if same_batch(images[part], of)]
    return hits[0] if hits else None


def same_batch(one: Value, other: Value) -> bool:
    """Whether two values have one row per image of the same batch."""
    if one is other:
        return True
    first, second = batch_of(one), batch_of(other)
    return first is not None and first is second


def batch_of(value: Value) -> Value | None:
    """The loader's item that a tensor of data came in, or was mixed from first."""
    value = plain(value)
    if value.op == "item":
        return value
    if value.op in ("part", "stored", "slice", "indexed", "each") and value.args:
        return batch_of(value.args[0])
    if value.op == "either":
        found = [batch_of(arg) for arg in value.args]
        return found[0] if found and all(item is found[0] for item in found) else None
    if value.op in ("call", "compute"):
        found = [item for item in map(batch_of, value.args) if item is not None]
        return (
            found[0]
            if found and all(item is found[0] for item in found)
            else (found[0] if found and value.op == "call" else None)
        )
    return None


def _sliced(value: Value) -> View | None:
    base = view(value.args[0])
    if base is None:
        return None
    lower, upper = value.args[1:]
    cut, after = (upper, False) if _is_none(lower) else (lower, True)
    if not _is_none(upper) and after:  # both ends: one part between two sizes
        return _between(base, lower, upper)
    negative = cut.op == "compute" and cut.detail == "USub"
    part = _size_of(cut.args[0] if negative else cut, base)
    if negative and part == base.parts[-1] and after:
        return View(base.forward, base.parts[-1:], base.output)
    if negative:
        return None
    if part is not None and part == base.parts[0]:
        return View(base.forward, base.parts[1:] if after else base.parts[:1], base.output)
    if part is None and len(base.parts) == 2 and not _knows_size(cut):
        return View(base.forward, base.parts[1:] if after else base.parts[:1], base.output)
    return None


def _knows_size(cut: Value) -> bool:
    return cut.op == "size"


def _between(base: View, lower: Value, upper: Value) -> View | None:
    first = _size_of(lower, base)
    ends = upper.args if upper.op == "compute" and upper.detail == "Add" else ()
    sizes = [_size_of(end, base) for end in ends]
    if first == base.parts[0] and len(base.parts) > 1 and sizes == list(base.parts[:2]):
        return View(base.forward, base.parts[1:2], base.output)
    return None


def _is_none(value: Value) -> bool:
    return value.op == "const" and value.detail is None


def names_of(value: Value, env: dict[str, Value]) -> list[str]:
    """Names that hold a value, the exact one first."""
    exact = [name for name, held in env.items() if held is value]
    alike = [name for name, held in env.items() if held is not value and plain(held) is plain(value)]
    return exact + alike
