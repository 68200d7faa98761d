"""A head from one flat mapping, as a YAML file or a command line has it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from brpg_lib.config import BRPGConfig
from brpg_lib.head import PrototypeHead
from brpg_lib.ranks.collectives import ProcessGroup
from brpg_lib.schedule import Schedule
from brpg_lib.validation import as_value_errors, require, require_choice, require_integer, require_known

PRESETS: dict[str, Callable[..., BRPGConfig]] = {
    name: getattr(BRPGConfig, name) for name in ("pascal", "cityscapes", "coco", "small_data")
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = (None, "cpu", "cuda")
CONFIG_KEYS = tuple(field.name for field in dataclasses.fields(BRPGConfig))
SCHEDULE_KEYS = tuple(inspect.signature(Schedule.from_epochs).parameters.keys() - {"iters_per_epoch"})
OWN_KEYS = ("preset", "feature_dim", "seed", "queue_dtype", "queue_device")


def config_from(given: Mapping[str, Any], *, preset: str = "pascal", prefix: str = "", **defaults: Any) -> BRPGConfig:
    """Hyper-parameters from a mapping.

    >>> config_from({"preset": "small_data", "loss_weight": 0.2}).pseudo_label_share
    0.5

    Args:
        given: Fields of :class:`~brpg_lib.BRPGConfig`, and ``preset``, which they change.
        preset: Where the mapping names none.
        prefix: What messages put before the name of a field.
        defaults: Fields that are weaker than ``given``, and stronger than the preset.

    Raises:
        ValueError: A key is unknown, or a value wrong; the message names it.
    """
    require_known(prefix, given, ("preset", *CONFIG_KEYS))
    name = given.get("preset", preset)
    with as_value_errors(prefix):
        require_choice("preset", name, tuple(PRESETS))
        return PRESETS[name](**(defaults | {key: value for key, value in given.items() if key != "preset"}))


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """What a head is made of, checked.

    Attributes:
        config: Hyper-parameters.
        schedule: Phases.
        feature_dim: Channels of the features.
        seed: Of the head's draws.
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
    def from_mapping(
        cls,
        given: Mapping[str, Any],
        *,
        iters_per_epoch: int,
        feature_dim: int,
        lengths: Mapping[str, float],
        preset: str = "pascal",
        prefix: str = "",
        **defaults: Any,
    ) -> HeadSettings:
        """Read a flat mapping; every key is optional.

        >>> settings = HeadSettings.from_mapping(
        ...     {"preset": "small_data", "warmup": 2, "temperature": 0.2},
        ...     iters_per_epoch=100, feature_dim=256, lengths={"warmup": 1, "collect": 1, "total": 80},
        ... )
        >>> settings.schedule.warmup, settings.config.temperature
        (200, 0.2)
        >>> head = settings.build(num_classes=21)

        Args:
            given: ``preset``, fields of :class:`~brpg_lib.BRPGConfig`, arguments of
                :meth:`~brpg_lib.Schedule.from_epochs`, ``feature_dim``, ``seed``, ``queue_dtype``, ``queue_device``.
            iters_per_epoch: Iterations of one epoch.
            feature_dim: Channels unless the mapping says otherwise.
            lengths: Epochs of ``warmup``, ``collect`` and ``total``, likewise.
            preset: Likewise.
            prefix: What messages put before the name of a key.
            defaults: Fields of the configuration, likewise.

        Raises:
            ValueError: A key is unknown or a value wrong; the message names it.
        """
        require_known(prefix, given, (*OWN_KEYS, *CONFIG_KEYS, *SCHEDULE_KEYS))
        dtype, device = given.get("queue_dtype", "float32"), given.get("queue_device")
        seed, dim = given.get("seed", 0), given.get("feature_dim", feature_dim)
        with as_value_errors(prefix):
            require_choice("queue_dtype", dtype, tuple(DTYPES))
            expected = "cpu, cuda, or nothing for the model's device"
            require(device in DEVICES, "queue_device", expected, repr(device))
            seed = require_integer("seed", seed, 0)
            require_integer("feature_dim", dim, 1)
        config = {key: given[key] for key in ("preset", *CONFIG_KEYS) if key in given}
        chosen = dict(lengths) | {key: given[key] for key in SCHEDULE_KEYS if key in given}
        with as_value_errors(prefix, f" (in iterations, {iters_per_epoch} per epoch)"):
            schedule = Schedule.from_epochs(**chosen, iters_per_epoch=iters_per_epoch)
        return cls(
            config=config_from(config, preset=preset, prefix=prefix, **defaults),
            schedule=schedule,
            feature_dim=dim,
            seed=seed,
            queue_dtype=DTYPES[dtype],
            queue_device=device,
        )

    def build(self, num_classes: int, process_group: ProcessGroup = None, prefix: str = "") -> PrototypeHead:
        """The head.

        Raises:
            ValueError: A setting does not fit the number of classes, or another setting.
        """
        with as_value_errors(prefix, without=("config.", "schedule.")):
            return PrototypeHead(
                num_classes,
                self.feature_dim,
                self.schedule,
                self.config,
                seed=self.seed,
                queue_dtype=self.queue_dtype,
                queue_device=self.queue_device,
                process_group=process_group,
            )
