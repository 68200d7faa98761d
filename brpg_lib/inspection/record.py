"""The state of heads, found in checkpoints of any shape."""

from __future__ import annotations

import codecs
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brpg_lib.checkpoint import unpack
from brpg_lib.cluster.bank import PrototypeBank
from brpg_lib.validation import require

BANK = "bank."
CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""Endings of files that may hold a head."""
SIZES = {"rows": "queue.rows", "idle": "idle", "seen": "seen", "dropped": "dropped"}
"""What else a head's state says, by its key; older or partial states may lack some."""


@dataclass(frozen=True)
class HeadRecord:
    """A head as a checkpoint has it.

    Attributes:
        place: Keys that lead to its state, and the prefix there, such as ``"parts/trainer/head"``; empty for the
            file itself.
        prototypes: ``(C, 2, K, D)`` float32.
        mask: ``(C, 2, K)`` bool, true where there is one.
        rows: ``(C, 2)`` int64 rows in the queues.
        idle: ``(C, 2, K)`` int64, see :class:`~brpg_lib.head_state.HeadState`.
        seen: ``(C,)`` bool, classes that the labels have shown.
        dropped: ``()`` int64, pixels and points left out.
        settings: What the head says of itself: sizes, ``config``, ``iteration``, ``seed``, ``version``; else empty.
        names: Of the classes, where the checkpoint has them.
        last_phase: Of the last step, where the checkpoint has it.
    """

    place: str
    prototypes: Tensor
    mask: Tensor
    rows: Tensor | None
    idle: Tensor | None
    seen: Tensor | None
    dropped: Tensor | None
    settings: Mapping[str, Any]
    names: tuple[str, ...] | None = None
    last_phase: str | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return self.mask.shape[0]

    @property
    def phase(self) -> str:
        """That of the last step; else what the state tells: a schedule is not part of it."""
        if self.last_phase is not None:
            return self.last_phase
        if bool(self.mask.any()):
            return "learn"
        return "collect" if self.rows is not None and bool(self.rows.any()) else "warmup"

    @property
    def config(self) -> Mapping[str, Any]:
        """Hyper-parameters of the head, as plain values."""
        found: Mapping[str, Any] = self.settings.get("config", {})
        return found

    def name(self, index: int) -> str:
        """Of a class."""
        return str(index) if self.names is None else self.names[index]

    def bank(self) -> PrototypeBank:
        """A bank with these prototypes, and as many slots."""
        classes, _, slots, dim = self.prototypes.shape
        options = {name: self.config[name] for name in ("momentum", "misclassified_weight") if name in self.config}
        bank = PrototypeBank(classes, dim, num_prototypes=(slots, slots), split_fraction=0.0, **options)
        bank.set(self.prototypes, self.mask)
        return bank


def load_bank(path: str | os.PathLike[str], head: str | None = None) -> PrototypeBank:
    """The prototypes of a checkpoint, to classify with, or for :meth:`~brpg_lib.PrototypeBank.adopt`.

    >>> import tempfile
    >>> from brpg_lib import PrototypeHead, Schedule
    >>> head = PrototypeHead(3, 8, Schedule(warmup=1, collect=1, total=9))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"model": {}, "head": head.state_dict()}, f"{folder}/last.pt")
    ...     load_bank(f"{folder}/last.pt").prototypes.shape
    torch.Size([3, 2, 3, 8])

    Args:
        path: As for :func:`read_heads`.
        head: Place of the head, where the checkpoint has several.

    Raises:
        ValueError: It holds no head, or several of which none is named.
    """
    return chosen(read_heads(path), head, path).bank()


def chosen(heads: list[HeadRecord], place: str | None, path: str | os.PathLike[str]) -> HeadRecord:
    """The head of that place, or the only one.

    Raises:
        ValueError: There is none, or there are several.
    """
    places = [head.place for head in heads]
    if place is None:
        require(len(heads) == 1, f"{path}", "one head, or the place of one of them", f"{len(heads)}: {places}")
        return heads[0]
    require(place in places, "head", f"one of {places}", repr(place))
    return heads[places.index(place)]


def read_heads(path: str | os.PathLike[str]) -> list[HeadRecord]:
    """All heads in a checkpoint, at least one; nothing in the file is run.

    Args:
        path: A checkpoint of ``brpg train`` or ``brpg demo``, the ``.brpg.pth`` of a patched script, a state dict of a
            head or of a model that holds one, or such dicts in others; by ``torch.save``, or ``.safetensors``.

    Raises:
        ValueError: It cannot be read, or holds no head; one line that says so.
        OSError: There is no such file.
        ModuleNotFoundError: ``safetensors`` is not installed.
    """
    file = load_checkpoint(path)
    found = heads_in(file)
    advice = "".join(f"; {hint}" for hint in _hints(Path(path)))
    require(bool(found), f"{path}", "the state of a prototype head (bank.prototypes, bank.mask)", f"none{advice}")
    if not isinstance(file, Mapping):
        return found
    names, phase = file.get("class_names"), _last_phase(file)
    known = [names is not None and len(names) == head.num_classes for head in found]
    return [
        replace(head, names=tuple(map(str, names)) if fits else None, last_phase=phase)  # type: ignore[arg-type]
        for head, fits in zip(found, known, strict=True)
    ]


def load_checkpoint(path: str | os.PathLike[str]) -> Any:
    """What is in a file, in host memory; nothing in it is run.

    Raises:
        ValueError: It is no checkpoint, or holds more than tensors and plain values.
        OSError: There is no such file.
        ModuleNotFoundError: ``safetensors`` is not installed.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        read: Any = load_file
    else:
        read = _torch_load
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in CHECKPOINTS)
        found = f"a directory with {', '.join(inside[:5])}" if inside else "a directory"
        raise ValueError(f"{path}: expected a checkpoint, found {found}")
    with path.open("rb"):
        pass  # tells best what is wrong with a file that cannot be opened
    try:
        return read(path)
    except Exception as error:  # a file that is none can fail in any way
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds objects of {foreign[1]}" if foreign else "is no checkpoint, or damaged"
        advice = "only tensors and plain values are read"
        if foreign:
            take = f"torch.save(torch.load({str(path)!r}, weights_only=False)['head'], 'head.pth')"
            advice += f"; where you trust the file, take the head out of it, by the key that it has there: {take}"
        raise ValueError("; ".join([f"{path}: {what}", *(_hints(path) or [advice])])) from error


def _hints(path: Path) -> list[str]:
    """Where else the head may be."""
    beside = path.with_suffix(".brpg.pth")
    return [f"the head of a patched script is in {beside.name}"] if beside.is_file() else []


def _torch_load(path: Path) -> Any:
    allowed = getattr(torch.serialization, "safe_globals", None)  # newer than torch 2.4
    with nullcontext() if allowed is None else allowed(_of_numpy()):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _of_numpy() -> list[Any]:
    """What arrays and numbers of NumPy are made of: plain values too, which random states hold."""
    made = [np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]]
    return [*made, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in np.typecodes["All"]}, codecs.encode]


def heads_in(value: object) -> list[HeadRecord]:
    """All heads in what a checkpoint holds."""
    return list(_heads(value, ""))


def _heads(value: object, place: str) -> Iterator[HeadRecord]:
    """Heads in nested mappings; a bank without a head counts as well."""
    if not isinstance(value, Mapping):
        return
    for key, inner in value.items():
        if isinstance(key, str) and (key == "prototypes" or key.endswith(".prototypes")):
            prefix = key.removesuffix("prototypes")
            mask = value.get(f"{prefix}mask")
            if isinstance(inner, Tensor) and isinstance(mask, Tensor) and _is_bank(inner, mask):
                head = prefix.removesuffix(BANK) if prefix == BANK or prefix.endswith(f".{BANK}") else prefix
                yield _record(value, place, head, inner, mask)
        elif isinstance(inner, Mapping):
            yield from _heads(inner, f"{place}{key}/")


def _is_bank(prototypes: Tensor, mask: Tensor) -> bool:
    fits = prototypes.ndim == 4 and prototypes.shape[1] == 2 and prototypes.is_floating_point()
    return fits and mask.dtype == torch.bool and prototypes.shape[:3] == mask.shape


def _record(state: Mapping[str, Any], place: str, prefix: str, prototypes: Tensor, mask: Tensor) -> HeadRecord:
    try:
        settings = unpack(state[f"{prefix}_extra_state"])
    except (KeyError, AttributeError, TypeError, ValueError, json.JSONDecodeError):
        settings = {}  # left out, or of something else
    rest = {name: state.get(prefix + key) for name, key in SIZES.items()}
    return HeadRecord((place + prefix).rstrip("./"), prototypes.float(), mask, **rest, settings=settings)


def _last_phase(file: Mapping[str, Any]) -> str | None:
    """As ``brpg train`` and ``brpg demo`` record it."""
    record = file.get("record")
    phases = record.get("phases") if isinstance(record, Mapping) else None
    return str(phases[-1][1]) if phases else None
