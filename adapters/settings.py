"""The ``brpg:`` section of a script's yaml."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from brpg_lib import BRPGConfig, Schedule
from brpg_lib.validation import require, require_integer, require_known

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = (None, "cpu", "cuda")


class Official(NamedTuple):
    """Official settings for a dataset: the preset of the hyper-parameters, and the epochs of warm-up and collect."""

    preset: str
    warmup: int
    collect: int


PRESETS: dict[str, Callable[..., BRPGConfig]] = {
    name: getattr(BRPGConfig, name) for name in ("pascal", "cityscapes", "coco", "small_data")
}
OFFICIAL = {"cityscapes": Official("cityscapes", warmup=3, collect=3), "coco": Official("coco", warmup=1, collect=1)}
DEFAULT = Official("pascal", warmup=1, collect=1)

CONFIG_KEYS = tuple(field.name for field in dataclasses.fields(BRPGConfig))
SCHEDULE_KEYS = tuple(inspect.signature(Schedule.from_epochs).parameters.keys() - {"iters_per_epoch"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the ``brpg:`` section asks for, checked; every key is optional.

    Attributes:
        config: Hyper-parameters: the preset of the dataset, changed by the section's keys of the same names.
        schedule: Phases: the official lengths, changed by the section's keys, which count epochs (fractions
            allowed).
        feature_dim: Channels of the features.
        seed: Seed of the head's draws and of the projection's initial weights.
        queue_dtype: Storage type of the queues.
        queue_device: Where the queues live: ``None`` for the model's device, ``"cpu"`` for host memory.
    """

    config: BRPGConfig
    schedule: Schedule
    feature_dim: int
    seed: int
    queue_dtype: torch.dtype
    queue_device: str | None

    @classmethod
    def from_section(
        cls,
        section: object,
        *,
        dataset: str,
        epochs: int,
        iters_per_epoch: int,
        feature_dim: int,
        ignore_index: int = 255,
    ) -> Settings | None:
        """Read a section.

        Args:
            section: What the yaml holds under ``brpg``: a mapping, or ``None``.
            dataset: The script's name of the dataset; it chooses the preset.
            epochs: Epochs of the training.
            iters_per_epoch: Iterations of one epoch.
            feature_dim: Channels unless the section says otherwise.
            ignore_index: The script's label of pixels without a class.

        Returns:
            The settings; ``None`` if the section says ``enabled: false``.

        Raises:
            ValueError: A key is unknown or a value out of range; the message names it.
        """
        require(
            section is None or isinstance(section, Mapping),
            "brpg",
            "a section of keys and values, such as {enabled: false}",
            repr(section),
        )
        given: dict[str, Any] = dict(section) if isinstance(section, Mapping) else {}
        own = ("enabled", "preset", "feature_dim", "seed", "queue_dtype", "queue_device")
        require_known("brpg.", given, (*own, *CONFIG_KEYS, *SCHEDULE_KEYS))
        enabled = given.get("enabled", True)
        require(isinstance(enabled, bool), "brpg.enabled", "true or false", repr(enabled))
        if not enabled:
            return None
        dtype, device = given.get("queue_dtype", "float32"), given.get("queue_device")
        require(
            isinstance(dtype, str) and dtype in DTYPES, "brpg.queue_dtype", f"one of {', '.join(DTYPES)}", repr(dtype)
        )
        require(device in DEVICES, "brpg.queue_device", "cpu, cuda, or nothing for the model's device", repr(device))
        seed, feature_dim = given.get("seed", 0), given.get("feature_dim", feature_dim)
        with named_as_in_the_yaml():
            require_integer("seed", seed, 0)
            require_integer("feature_dim", feature_dim, 1)
        official = next((official for name, official in OFFICIAL.items() if dataset.startswith(name)), DEFAULT)
        preset = given.get("preset", official.preset)
        is_known = isinstance(preset, str) and preset in PRESETS
        require(is_known, "brpg.preset", f"one of {', '.join(PRESETS)}", repr(preset))
        lengths = {"warmup": official.warmup, "collect": official.collect, "total": epochs}
        with named_as_in_the_yaml():
            config = PRESETS[preset](**({"ignore_index": ignore_index} | _pick(given, CONFIG_KEYS)))
        with named_as_in_the_yaml(f" (in iterations, {iters_per_epoch} per epoch)"):
            schedule = Schedule.from_epochs(**(lengths | _pick(given, SCHEDULE_KEYS)), iters_per_epoch=iters_per_epoch)
        return cls(
            config=config,
            schedule=schedule,
            feature_dim=feature_dim,
            seed=seed,
            queue_dtype=DTYPES[dtype],
            queue_device=device,
        )


@contextmanager
def named_as_in_the_yaml(remark: str = "") -> Iterator[None]:
    """Errors name the key of the section, and end with ``remark``; in a file, a wrong type is just a wrong value."""
    try:
        yield
    except (TypeError, ValueError) as error:
        field = str(error).removeprefix("config.").removeprefix("schedule.")
        raise ValueError(f"brpg.{field}{remark}") from None


def _pick(given: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: given[key] for key in keys if key in given}
