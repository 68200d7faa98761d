"""A module whose tensors are state to keep exact."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Self = TypeVar("Self", bound="StateModule")


class StateModule(nn.Module):
    """Follows its owner to another device, never to another dtype.

    ``model.half()`` on a model that holds a bank must not round its prototypes. And what averages, broadcasts or copies
    the buffers of a model (moving averages of weights, DistributedDataParallel) must not reach counters, flags and
    queues: these are no buffers. They move with the module and are in its state dict as buffers would be.
    """

    def __init__(self) -> None:
        super().__init__()
        self._persistent: dict[str, bool] = {}

    def register_state(self, name: str, value: Tensor, persistent: bool = True) -> None:
        """Add a tensor to the state.

        Args:
            name: Of the attribute.
            value: Its value.
            persistent: Whether the state dict has it.
        """
        with torch.inference_mode(False):  # or nothing outside could change it
            setattr(self, name, value.clone() if value.is_inference() else value)
        self._persistent[name] = persistent

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Names and values of all that belongs to the state, here and in submodules, buffers included."""
        yield from self.named_buffers()
        for prefix, module in self.named_modules():
            if isinstance(module, StateModule):
                for name in module._persistent:
                    yield f"{prefix}.{name}".lstrip("."), getattr(module, name)

    def state(self, name: str) -> Tensor:
        """One tensor of :meth:`named_state`."""
        found: Tensor = attrgetter(name)(self)
        return found

    def reset(self) -> None:
        """Give the state the values of a new module. Here there is none."""

    def reset_parameters(self) -> None:
        """:meth:`reset`, by the name under which PyTorch and its FSDP look for it after ``to_empty``."""
        self.reset()

    @contextmanager
    def _as_buffers(self) -> Iterator[None]:
        """Inside, the state is buffers, and so moved, saved and loaded by ``nn.Module``."""
        self._buffers.update({name: self.__dict__.pop(name) for name in self._persistent})
        hidden = {name for name, persistent in self._persistent.items() if not persistent}
        self._non_persistent_buffers_set |= hidden
        try:
            with torch.inference_mode(False):
                yield
        finally:
            self.__dict__.update({name: self._buffers.pop(name) for name in self._persistent})
            self._non_persistent_buffers_set -= hidden

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
        """Give a tensor of the state a value: in place, as a CUDA graph may read it, or anew on another device."""
        own = getattr(self, name)
        if own.device == value.device:
            own.copy_(value)
        else:
            setattr(self, name, value)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor[:0]) if tensor.ndim else fn(tensor)
            if moved.device.type == "meta" or tensor.is_meta:
                return fn(tensor)
            return tensor.to(moved.device)

        base: Any = super()  # nn.Module declares no types here
        with self._as_buffers():
            base._apply(move, recurse)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, persistent in self._persistent.items():
            if persistent:
                destination[prefix + name] = self._saved(name)

    def _saved(self, name: str) -> Tensor:
        """A tensor of the state as a state dict has it: a copy.

        What comes later does not reach the state dict, and what moving averages write to it does not reach the state.
        """
        own: Tensor = getattr(self, name)
        return own.detach().clone()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        with self._as_buffers():
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
