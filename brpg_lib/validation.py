"""How bad input is reported: the field, what was expected, what was found."""

from __future__ import annotations

from torch import Tensor


def require(condition: bool, field: str, expected: str, found: object) -> None:
    """Raise a ``ValueError`` naming ``field`` unless ``condition`` holds.

    Raises:
        ValueError: ``condition`` is false.
    """
    if not condition:
        raise ValueError(f"{field}: expected {expected}, found {found}")


def require_integer(field: str, value: object, minimum: int) -> None:
    """Require an ``int`` (not a ``bool``) of at least ``minimum``."""
    valid = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
    require(valid, field, f"an integer >= {minimum}", repr(value))


def require_number(field: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    """Require a finite number in ``[low, high]``, or in ``(low, high]`` with ``open_low``."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    valid = is_number and (low < value if open_low else low <= value) and value <= high  # type: ignore[operator]
    require(valid, field, f"a number in {'(' if open_low else '['}{low}, {high}]", repr(value))


def describe(tensor: object) -> str:
    """One phrase for a tensor in an error message: shape, dtype and device."""
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"
