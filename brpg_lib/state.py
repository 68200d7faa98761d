"""A module whose buffers are state to keep exact."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

Self = TypeVar("Self", bound="StateModule")


class StateModule(nn.Module):
    """Follows its owner to another device, never to another dtype.

    ``model.half()`` on a model that holds a bank must not round its prototypes.
    """

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        """A copy that belongs to the same process group, which itself cannot be copied."""
        group = getattr(self, "process_group", None)
        if group is not None:
            memo[id(group)] = group
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return twin

    def put(self, name: str, value: Tensor) -> None:
        """Give a buffer a value: in place, as a CUDA graph may read it, or anew where it lies on another device."""
        buffer = self.get_buffer(name)
        if buffer.device == value.device:
            buffer.copy_(value)
        else:
            setattr(self, name, value)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor[:0]) if tensor.ndim else fn(tensor)
            if moved.device.type == "meta" or tensor.is_meta:
                return fn(tensor)
            return tensor.to(moved.device)

        base: Any = super()  # nn.Module declares no types here
        base._apply(move, recurse)
        return self
