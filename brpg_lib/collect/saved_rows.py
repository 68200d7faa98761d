"""Rows of the queues as a state dict has them: those in use, which are more or fewer from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from brpg_lib.notices import warn
from brpg_lib.validation import require

KEPT = "fallback_rows"
"""How many rows kept for rare classes each class has: ``(C,)`` int64. Only a state dict has it."""

_ELEMENTWISE = ("add", "radd", "sub", "rsub", "lerp", "copy", "foreach_add", "foreach_sub", "foreach_lerp")
"""What moving averages are made of: operations of two tensors, or two lists, by name without outer underscores."""


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


def pack(queues: Tensor, rows: Tensor) -> SavedRows:
    """The rows in use, one queue after the other: ``(sum of rows, *)``. On the meta device, where none are known, none.

    Args:
        queues: Whole ones ``(..., n, *)``.
        rows: ``(...)`` int64, how many of the first rows of each are in use.
    """
    if queues.is_meta:
        return SavedRows.of(queues.flatten(0, rows.ndim)[:0])
    longest = int(rows.max())
    return SavedRows.of(queues.narrow(rows.ndim, 0, longest)[_in_use(rows, longest)])


PAIRS = tuple((f"{start}features", f"{start}confidence") for start in ("", "fallback_"))
"""Names of rows, and of what lies beside each."""


def require_pairs(state: Mapping[str, Any], prefix: str) -> None:
    """Require that each row of a queue's state has a confidence.

    Raises:
        ValueError: One is missing.
    """
    for rows, others in PAIRS:
        first, second = (state.get(prefix + name) for name in (rows, others))
        if first is not None and second is not None and first.ndim and second.ndim:
            fits = len(first) == len(second)
            require(fits, prefix + others, f"{len(first)} rows, as {rows} has", f"{len(second)} rows")


def unpack(state: dict[str, Any], prefix: str, num_groups: int) -> set[str]:
    """Inverse of :func:`pack`, with all queues as long as the longest one; states before version 4 are like that.

    Args:
        state: Of a queue; changed.
        prefix: Of the queue's names there.
        num_groups: How many groups of a class are stored.

    Returns:
        Names of the tensors that are new.

    Raises:
        ValueError: There are not as many rows as there should be.
    """
    if _counted(state, prefix, num_groups):
        _leave_out_averages(state, prefix)
    packed = _counted(state, prefix, num_groups)
    for name, rows in packed.items():
        saved, count = state[name], int(rows.sum())
        require(saved.shape[:1] == (count,), name, f"{count} rows, as the state says", tuple(saved.shape))
        places = _in_use(rows, int(rows.max())).to(saved.device)
        free = -1.0 if name == prefix + "fallback_confidence" else 0.0
        state[name] = torch.full((*places.shape, *saved.shape[1:]), free, dtype=saved.dtype, device=saved.device)
        state[name][places] = saved.as_subclass(Tensor)
    state.pop(prefix + KEPT, None)
    return set(packed)


def _leave_out_averages(state: dict[str, Any], prefix: str) -> None:
    """Forget queues of which there are more or fewer rows than the state says.

    A moving average of state dicts is like that, see :class:`SavedRows`: it has rows of one time, and numbers of
    another.
    """
    told = False
    for pair, counters in zip(PAIRS, (("rows", "cursor"), (KEPT,)), strict=True):
        names = [prefix + name for name in pair if prefix + name in state]
        lengths = {len(state[name]) for name in names if state[name].ndim}
        if len(lengths) != 1 or lengths == {int(state[prefix + counters[0]].sum())}:
            continue
        told = True
        state.update({name: state[name][:0] for name in names})
        state.update({prefix + name: torch.zeros_like(state[prefix + name]) for name in counters})
    if told:
        warn(
            "the queues of the head are empty now: the state that was loaded is a moving average of states, which has "
            "no rows of a queue; where a training goes on, load the state that the head has saved"
        )


def _counted(state: dict[str, Any], prefix: str, num_groups: int) -> dict[str, Tensor]:
    """The number of rows of each queue, by the names of the tensors that hold them; none in a state that is not so."""
    rows, kept = (state.get(prefix + name) for name in ("rows", KEPT))
    if rows is None or kept is None or rows.ndim != 2:
        return {}
    counts = {"features": rows[:, :num_groups], "confidence": rows[:, :num_groups]}
    counts |= {"fallback_features": kept, "fallback_confidence": kept}
    return {prefix + name: numbers for name, numbers in counts.items() if prefix + name in state}


def _in_use(rows: Tensor, longest: int) -> Tensor:
    """Which places of queues hold their first ``rows (...)``: ``(..., longest)`` bool."""
    return torch.arange(longest, device=rows.device) < rows[..., None]


def fits_into(saved: Tensor, full: Tensor, axis: int) -> bool:
    """Whether whole queues fit into full ones, however many rows there are along ``axis``."""
    fits = saved.ndim == full.ndim and saved.shape[axis] <= full.shape[axis]
    return fits and saved.shape[:axis] == full.shape[:axis] and saved.shape[axis + 1 :] == full.shape[axis + 1 :]
