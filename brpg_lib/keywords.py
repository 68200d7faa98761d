"""Mistyped keyword arguments, answered with what was meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar, cast

from brpg_lib.validation import meant

Function = TypeVar("Function", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)


def checked_keywords(function: Function) -> Function:
    """Let a function name what was meant by a keyword that it does not know.

    >>> @checked_keywords
    ... def train(*, epochs: int = 1, momentum: float = 0.9) -> None: ...
    >>> train(epoch=3)
    Traceback (most recent call last):
        ...
    TypeError: train() got an unexpected keyword argument 'epoch'; did you mean 'epochs'? It takes epochs, momentum
    """
    names = tuple(inspect.signature(function).parameters)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _require(function.__qualname__, kwargs, names)
        return function(*args, **kwargs)

    return cast(Function, checked)


def with_checked_keywords(cls: Class) -> Class:
    """:func:`checked_keywords` for what a class, or one derived from it, is made of."""
    made: Callable[..., None] = cls.__init__  # type: ignore[misc]  # that of this class, not of one derived from it
    names = tuple(inspect.signature(made).parameters)[1:]

    @wraps(made)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        _require(type(self).__name__, kwargs, names)
        made(self, *args, **kwargs)

    cls.__init__ = checked  # type: ignore[misc]
    return cls


def _require(title: str, given: Iterable[str], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            problem = f"{title}() got an unexpected keyword argument {name!r}"
            raise TypeError(f"{problem}; {meant(name, known, repr)}It takes {', '.join(known)}")
