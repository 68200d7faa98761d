"""Rows of a queue as a state dict has them: as many as are in use, which differs from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ELEMENTWISE = ("add", "radd", "sub", "rsub", "lerp", "copy", "foreach_add", "foreach_sub", "foreach_lerp")
"""What moving averages are made of: operations of two tensors, or two lists, by name without outer underscores."""

ROWS_ALONG = {"features": 2, "confidence": 2, "fallback_features": 1, "fallback_confidence": 1}
"""The axis of each tensor of a queue along which its rows lie."""


class SavedRows(Tensor):
    """A tensor that does not mix with one of another length.

    Moving averages such as timm's ``ModelEma`` go through two state dicts entry by entry. The rows of two queues have
    no average; where their numbers differ, the operation leaves the first ones as they are, instead of failing. In a
    file they are a plain tensor.
    """

    @classmethod
    def of(cls, rows: Tensor) -> SavedRows:
        """A copy of plain rows."""
        return rows.clone().as_subclass(cls)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation, but for those that would mix different lengths."""
        if len(args) > 1 and getattr(func, "__name__", "").strip("_") in _ELEMENTWISE:
            first, second = args[:2]
            if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
                alike = [i for i, pair in enumerate(zip(first, second, strict=True)) if not _differ(*pair)]
                args = ([first[i] for i in alike], [second[i] for i in alike], *args[2:])
            elif _differ(first, second):
                return first
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> SavedRows:
        """A copy."""
        memo[id(self)] = twin = SavedRows.of(self)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As a plain tensor: who loads a file need not know this class."""
        return self.as_subclass(torch.Tensor).__reduce_ex__(protocol)


def _differ(first: object, second: object) -> bool:
    return isinstance(first, SavedRows) and isinstance(second, SavedRows) and first.shape != second.shape


def differ_in_rows_only(own: Tensor, saved: Tensor, axis: int, most: int) -> bool:
    """Whether saved rows fit a queue of at most so many, whatever their number."""
    fits = saved.ndim == own.ndim and saved.shape[axis] <= most
    return fits and saved.shape[:axis] == own.shape[:axis] and saved.shape[axis + 1 :] == own.shape[axis + 1 :]
