"""What a head's checkpoint says of the head that wrote it, and which heads may go on from it."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from brpg_lib.notices import warn
from brpg_lib.state import StateModule
from brpg_lib.validation import MAX_COUNT, require

VERSION = 4
"""Of the state dict. Before 4, its queues were as long as the longest one, see :mod:`brpg_lib.collect.saved_rows`."""
ADDED = {"idle": 2, "limits.values": 3}
"""Since which version a buffer is there; before, it would have been zero."""
OLDEST = 1
SHAPING = (
    "num_classes",
    "feature_dim",
    "config.num_prototypes",
    "config.split_fraction",
    "config.split_increment",
    "config.separate_confidence",
    "config.queue_size",
    "config.rare_class_fallback",
)
"""Settings that the sizes of the state depend on. The others can be changed in a training that goes on."""
BEFORE: dict[str, Any] = {
    "config.point_balance": 0.0,
    "config.pseudo_label_share": None,
    "config.restarts": 8,
    "config.max_iterations": 100,
    "config.labeled_weight": 1.0,
    "config.unlabeled_weight": 1.0,
}
"""What the library did before it had a setting, which older checkpoints do not mention."""
FREE = ("version", "iteration", "seed", "config.backend")
"""What need not be the same."""


class Resumable(StateModule):
    """A module whose state dict says of which kind it is, and loads into its own kind only."""

    _strict = True

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What has to be the same where its state is loaded, as plain JSON values."""

    @abstractmethod
    def progress(self) -> dict[str, Any]:
        """What the state says beside its tensors: integers up to MAX_COUNT, among them ``iteration``."""

    @abstractmethod
    def go_on(self, progress: Mapping[str, Any]) -> None:
        """Take over the :meth:`progress` of a checkpoint."""

    @abstractmethod
    def require_parts(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Require that the state of its submodules can be loaded, before anything is changed.

        Raises:
            ValueError: It cannot.
        """

    def get_extra_state(self) -> Tensor:
        """What a checkpoint says beside the buffers: packed JSON."""
        values = {"version": VERSION} | self.identity()
        longest = pack(values | dict.fromkeys(self.progress(), MAX_COUNT))
        return pack(values | self.progress(), length=len(longest))

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what a checkpoint says, so that the same draws follow."""
        self.go_on(unpack(state))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Go on from a checkpoint of this or an older version of the library, in any phase, with any number of ranks.

        Args:
            state_dict: From ``state_dict()``.
            strict: Whether the head that wrote it has to be like this one in all settings. With ``False`` only sizes
                have to fit: settings such as ``temperature`` may be others (a warning names them), and without
                ``_extra_state`` the iteration stays as it is. The ``load_state_dict`` of a model that holds the head
                does not pass this on: there, all settings have to be the same.
            assign: As in ``torch.nn.Module``.

        Returns:
            Missing and unexpected keys.

        Raises:
            ValueError: It is the state of another head; the message names every difference. Nothing was changed.
            RuntimeError: A key is missing or unexpected, with ``strict``.
        """
        self._strict = strict
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        finally:
            self._strict = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(f"{prefix}_extra_state")
        without = prefix and not any(name.startswith(prefix) for name in state_dict)
        if without and self.progress()["iteration"] == 0:  # else somebody puts other weights into a model that trains
            warn(
                f"the state that was loaded holds nothing of the head {prefix.rstrip('.')!r}, which begins with "
                "nothing; if this training is resumed, the checkpoint has been saved without the head"
            )
        if saved is not None:
            values = unpack(saved)
            require_loadable(self.identity(), values, self._strict)
            self.require_parts(state_dict, prefix)
            for name, since in ADDED.items():  # in place: a copy would not reach the submodules
                if values["version"] < since:
                    state_dict.setdefault(prefix + name, torch.zeros_like(self.state(name)))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def pack(values: dict[str, Any], length: int = 0) -> Tensor:
    """Plain JSON values as a ``(n,)`` uint8 tensor: file formats such as safetensors hold nothing but tensors.

    Args:
        values: What to say.
        length: The tensor is that long at least, so that states of one head are equally long.
    """
    return torch.tensor(list(json.dumps(values).encode().ljust(length)), dtype=torch.uint8)


def unpack(packed: Tensor) -> dict[str, Any]:
    """Inverse of :func:`pack`.

    Raises:
        ValueError: It is something else, such as an average of two.
    """
    advice = "average only what is floating point"
    require(packed.dtype == torch.uint8, "_extra_state", "bytes", f"{packed.dtype}; {advice}")
    values: dict[str, Any] = json.loads(bytes(packed.cpu().tolist()))
    return values


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as one level of dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        nested = value.items() if isinstance(value, dict) else ()
        found.update({f"{name}.{key}": inner for key, inner in nested} or {name: value})
    return found


def require_loadable(own: Mapping[str, Any], saved: Mapping[str, Any], strict: bool) -> None:
    """Require that a head can go on from the checkpoint of another one.

    Args:
        own: Identity of the head that loads.
        saved: What the checkpoint says of the head that wrote it.
        strict: Whether all settings have to be the same, or only those that sizes depend on.

    Raises:
        ValueError: It cannot; the message names every difference.
    """
    version = saved.get("version")
    known = isinstance(version, int) and OLDEST <= version <= VERSION
    advice = "upgrade brpg-lib" if isinstance(version, int) and version > VERSION else "it is no state of a head"
    require(known, "state_dict", f"a state of version {OLDEST} to {VERSION}", f"version {version!r}; {advice}")
    mine, theirs = flat(own), BEFORE | flat(saved)
    differing = {
        name: f"{name} is {theirs.get(name)!r}, here {mine.get(name)!r}"
        for name in mine | theirs
        if name not in FREE and mine.get(name) != theirs.get(name)
    }
    shaping = [text for name, text in differing.items() if name in SHAPING]
    text = "; ".join(differing.values())
    if strict or shaping:
        hint = "" if shaping else "; head.load_state_dict(..., strict=False) goes on with what is set here"
        require(not differing, "state_dict", "the state of a head like this one", text + hint)
    elif differing:
        warn(f"going on from the state of a head with other settings: {text}")
