"""Memory of feature queues, and how it lies in a state dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from brpg_lib.collect.room import Room
from brpg_lib.collect.saved_rows import KEPT, fits_into, pack, require_pairs, unpack
from brpg_lib.state import StateModule
from brpg_lib.validation import require

META = torch.device("meta")
AXES = {"features": 2, "confidence": 2, "fallback_features": 1, "fallback_confidence": 1}
"""The buffers, and along which axis of each the rows lie."""


class QueueBuffers(StateModule):
    """Buffers of rows, as long as they have to be, up to a capacity. A new module has them at full length.

    Args:
        num_classes: Number of classes C.
        feature_dim: Channels D of a row.
        num_groups: Queues of each class.
        capacity: Rows of a queue.
        fallback_capacity: Rows of each class that are kept for rare classes.
        dtype: Of the features.
        device: None to follow the module.
    """

    features: Tensor
    confidence: Tensor
    rows: Tensor
    cursor: Tensor
    dropped: Tensor
    fallback_features: Tensor
    fallback_confidence: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        *,
        num_groups: int,
        capacity: int,
        fallback_capacity: int,
        dtype: torch.dtype,
        device: torch.device | None,
    ) -> None:
        super().__init__()
        self.num_classes, self.feature_dim, self.num_groups = num_classes, feature_dim, num_groups
        self.capacity, self.fallback_capacity = capacity, fallback_capacity
        self.dtype, self.storage_device = dtype, device
        self._room = Room(num_classes, num_groups * capacity + fallback_capacity, feature_dim, dtype)
        self._room.require(torch.empty(0, device=device).device)
        for name, empty in self._empty(capacity, fallback_capacity, device).items():
            self.register_state(name, empty)
        for name in ("rows", "cursor"):
            self.register_state(name, torch.zeros(num_classes, 2, dtype=torch.int64, device=device))
        self.register_state("dropped", torch.zeros((), dtype=torch.int64, device=device))

    def _empty(self, length: int, fallback_length: int, device: torch.device | None) -> dict[str, Tensor]:
        """Buffers without rows; -1 is less than the confidence of any row."""
        regular, rare = (self.num_classes, self.num_groups, length), (self.num_classes, fallback_length)
        real: dict[str, Any] = {"dtype": torch.float32, "device": device}
        return {
            "features": self._rows(regular, device),
            "confidence": torch.zeros(regular, **real),
            "fallback_features": self._rows(rare, device),
            "fallback_confidence": torch.full(rare, -1.0, **real),
        }

    def _rows(self, places: tuple[int, ...], device: torch.device | None) -> Tensor:
        pinned = device is not None and device.type == "cpu" and torch.cuda.is_available() and places[-1] > 0
        return torch.zeros(*places, self.feature_dim, dtype=self.dtype, device=device, pin_memory=pinned)

    def kept_rows(self) -> Tensor:
        """How many rows are kept for each class in case it is rare, in the first places: ``(C,)`` int64."""
        return (self.fallback_confidence >= 0).sum(1)

    def reserve(self, length: int | None = None, fallback_length: int | None = None) -> None:
        """Make shorter buffers so long, or as long as their capacity allows; by default as long as that.

        Args:
            length: Of each queue.
            fallback_length: Rows of each class that are kept for rare classes.
        """
        own, rare = self.features.shape[2], self.fallback_features.shape[1]
        new = max(own, self.capacity if length is None else min(length, self.capacity))
        most = self.fallback_capacity
        new_rare = max(rare, most if fallback_length is None else min(fallback_length, most))
        if (own, rare) == (new, new_rare):
            return
        with torch.inference_mode(False), self._room.told():
            longer = self._empty(new, new_rare, self.features.device)
        for name, buffer in longer.items():
            held = getattr(self, name)
            buffer.narrow(AXES[name], 0, held.shape[AXES[name]]).copy_(held)
            setattr(self, name, buffer)

    def release(self) -> None:
        """Forget all rows and give their memory back; the next rows take it again."""
        self.rows.zero_()
        self.cursor.zero_()
        self._cut(0, 0)

    def keep_only(self, classes: Tensor) -> None:
        """Forget the rows of all but some ``classes (C,)`` bool, and give back the memory that these do not need."""
        others = ~classes.to(self.rows.device)[:, None]
        self.rows.masked_fill_(others, 0)
        self.cursor.masked_fill_(others, 0)
        self.fallback_confidence.masked_fill_(others, -1.0)
        self._cut(int(self.rows.max()), int(self.kept_rows().max()))

    def _cut(self, length: int, fallback_length: int) -> None:
        """Shorten the buffers."""
        with torch.inference_mode(False):
            for name, axis in AXES.items():
                held, left = getattr(self, name), fallback_length if axis == 1 else length
                if held.shape[axis] > left:
                    setattr(self, name, held.narrow(axis, 0, left).clone())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QueueBuffers:
        if self.storage_device is not None:
            return self
        with self._room.told():
            return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + KEPT] = self.kept_rows()

    def _saved(self, name: str) -> Tensor:
        if name not in AXES:
            return super()._saved(name)
        return pack(getattr(self, name), self.rows[:, : self.num_groups] if AXES[name] == 2 else self.kept_rows())

    def require_loadable(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Require that a state can be of such a queue, before anything is changed.

        Raises:
            ValueError: It cannot; the message names what is wrong.
        """
        rows, cursor = (state_dict.get(prefix + name) for name in ("rows", "cursor"))
        if rows is not None and cursor is not None:  # only a full ring starts elsewhere than at its first place
            fits = bool(((cursor == rows) | (rows == self.capacity)).all())
            require(fits, f"{prefix}cursor", f"that of a queue of capacity {self.capacity}", "that of a smaller one")
        require_pairs(state_dict, prefix)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self.require_loadable(state_dict, prefix)
        state_dict = dict(state_dict)
        with torch.inference_mode(False):
            unpacked = unpack(state_dict, prefix, self.num_groups)
            for name, full in self._empty(self.capacity, self.fallback_capacity, META).items():
                key, held = prefix + name, getattr(self, name)
                saved = state_dict.get(key)
                if saved is None or not fits_into(saved, full, AXES[name]):
                    continue
                # Adopt its length; new rows make room again.
                if key in unpacked and not held.is_meta:  # laid out for this queue: no second copy
                    state_dict[key] = saved.to(held)
                    setattr(self, name, state_dict[key])
                else:
                    setattr(self, name, held.new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
