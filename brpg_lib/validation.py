"""How bad input is reported: the field, what was expected and found; TypeError for a wrong type, else ValueError."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
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


def require_type(condition: bool, field: str, expected: str, found: object) -> None:
    """Raise a ``TypeError`` naming ``field`` unless ``condition`` holds.

    Raises:
        TypeError: ``condition`` is false.
    """
    if not condition:
        raise TypeError(f"{field}: expected {expected}, found {found}")


def require_instance(field: str, value: object, kind: type, expected: str) -> None:
    """Require an object of a class; ``expected`` names it with its article.

    Raises:
        TypeError: It is of another one.
    """
    require_type(isinstance(value, kind), field, expected, type(value).__name__)


def require_tensor(fits: bool, field: str, expected: str, value: object) -> None:
    """Require a tensor that ``fits``.

    Raises:
        TypeError: ``value`` is no tensor.
        ValueError: It does not fit.
    """
    require_type(isinstance(value, Tensor), field, expected, type(value).__name__)
    require(fits, field, expected, describe(value))


def plain(value: object) -> Any:
    """A number of NumPy as one of Python, and any list (of JSON, YAML, OmegaConf, NumPy) as a tuple of such."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes)):
        return tuple(plain(inner) for inner in value)
    return value


def require_integer(field: str, value: object, minimum: int, maximum: int = MAX_SIZE) -> int:
    """Require an integer (of Python or NumPy, not a ``bool``) in ``[minimum, maximum]``.

    Returns:
        It, as an ``int``.

    Raises:
        TypeError: It is no integer.
        ValueError: It is out of range.
    """
    number: Any = plain(value)
    is_whole = isinstance(number, int) and not isinstance(number, bool)
    too_large = isinstance(number, int) and number > maximum
    expected = f"an integer >= {minimum}" + f" and <= {maximum}" * too_large
    require_type(is_whole, field, expected, repr(value))
    require(minimum <= number <= maximum, field, expected, repr(value))
    return int(number)


def require_number(field: str, value: object, low: float, high: float, *, open_low: bool = False) -> float:
    """Require a finite number (of Python or NumPy) in ``[low, high]``, or in ``(low, high]`` with ``open_low``.

    Returns:
        It, as a number of Python.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range.
    """
    number: Any = plain(value)
    expected = f"a number in {'(' if open_low else '['}{low}, {high}]"
    require_type(isinstance(number, (int, float)) and not isinstance(number, bool), field, expected, repr(value))
    above = low < number if open_low else low <= number
    require(above and number <= high, field, expected, repr(value))
    return number  # type: ignore[no-any-return]


def require_bool(field: str, value: object) -> None:
    """Require True or False.

    Raises:
        TypeError: It is something else.
    """
    require_type(isinstance(value, bool), field, "True or False", repr(value))


def require_choice(field: str, value: object, choices: Collection[str]) -> None:
    """Require one of some words.

    Raises:
        TypeError: It is no word.
        ValueError: It is another one.
    """
    expected = f"one of {', '.join(choices)}"
    require_type(isinstance(value, str), field, expected, repr(value))
    require(value in choices, field, expected, repr(value))


def require_pair(field: str, value: object, expected: str) -> None:
    """Require a tuple of two.

    Raises:
        TypeError: It is no tuple.
        ValueError: It has another length.
    """
    require_type(isinstance(value, tuple), field, expected, repr(value))
    require(len(value) == 2, field, expected, repr(value))  # type: ignore[arg-type]


@contextmanager
def as_value_errors(prefix: str = "", suffix: str = "", without: Sequence[str] = ()) -> Iterator[None]:
    """For what comes from a file or a command line, where a wrong type is just a wrong value.

    Args:
        prefix: To stand before the name of the field.
        suffix: To stand at the end.
        without: Beginnings of the name of the field that a file does not have.

    Raises:
        ValueError: A ``TypeError`` or ``ValueError`` was raised inside; with the same message.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        message = str(error)
        for beginning in without:
            message = message.removeprefix(beginning)
        raise ValueError(f"{prefix}{message}{suffix}") from error


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
            raise ValueError(f"{prefix}{name}: {meant(name, known)}expected one of {', '.join(sorted(known))}")


def meant(name: object, known: Collection[str], shown: Callable[[str], str] = str) -> str:
    """What somebody may have meant by a name that is not ``known``, as a question; else nothing."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {shown(near[0])}? " if near else ""


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
    require_type(known, field, "None, a torch.device or its name", repr(value))
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
