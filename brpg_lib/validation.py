"""How bad input is reported: the field, what was expected, what was found."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

import torch
from torch import Tensor


def require(condition: bool, field: str, expected: str, found: object) -> None:
    """Raise a ``ValueError`` naming ``field`` unless ``condition`` holds.

    Raises:
        ValueError: ``condition`` is false.
    """
    if not condition:
        raise ValueError(f"{field}: expected {expected}, found {found}")


MAX_SIZE = 2**31 - 1
MAX_COUNT = 2**42 - 1
"""Of iterations, which travel between ranks in so many bits, and seeds."""


def require_integer(field: str, value: object, minimum: int, maximum: int = MAX_SIZE) -> None:
    """Require an ``int`` (not a ``bool``) in ``[minimum, maximum]``."""
    valid = isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum
    too_large = isinstance(value, int) and value > maximum
    require(valid, field, f"an integer >= {minimum}" + f" and <= {maximum}" * too_large, repr(value))


def require_number(field: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    """Require a finite number in ``[low, high]``, or in ``(low, high]`` with ``open_low``."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    valid = is_number and (low < value if open_low else low <= value) and value <= high  # type: ignore[operator]
    require(valid, field, f"a number in {'(' if open_low else '['}{low}, {high}]", repr(value))


def require_bool(field: str, value: object) -> None:
    """Raises ``ValueError`` unless a value is True or False."""
    require(isinstance(value, bool), field, "True or False", repr(value))


def require_known(prefix: str, given: Iterable[object], known: Collection[str]) -> None:
    """Require names to be among the ``known`` ones; a close one is suggested.

    Args:
        prefix: What stands before the name in a message, such as ``"brpg."``.
        given: The names.
        known: Those that there are.

    Raises:
        ValueError: One is not.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"{prefix}{name}: expected one of {', '.join(sorted(known))}{hint}")


def can_read(tensor: Tensor) -> bool:
    """Whether reading values costs nothing: on CUDA it would wait, under torch.compile it breaks the graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor holds integers (not bools)."""
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool


def require_device(field: str, value: object) -> torch.device | None:
    """Require a device that can be used, or ``None``."""
    if value is None:
        return None
    known = isinstance(value, (str, torch.device))
    require(known, field, "None, a torch.device or its name", repr(value))
    try:
        return torch.empty(0, device=value).device  # type: ignore[call-overload, no-any-return]
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{field}: expected a device that can be used, found {value!r} ({_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]


def describe(tensor: object) -> str:
    """One phrase for a tensor in an error message: shape, dtype and device."""
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"
