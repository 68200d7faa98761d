"""When each phase of the method runs, in iterations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, overload

from torch import Tensor

from brpg_lib.fields import PlainFields
from brpg_lib.keywords import checked_keywords, with_checked_keywords
from brpg_lib.validation import (
    MAX_COUNT,
    require,
    require_bool,
    require_integer,
    require_number,
    require_pair,
)

RAMP_SHARE = 1 / 16
"""Of the training, before the pseudo-label threshold rises: 5 of 80 epochs, as published."""
SMALL_DATA: Mapping[str, float] = {"warmup": 1 / 5, "collect": 1 / 20, "recluster_every": 1 / 20}
"""Shares of the training in :meth:`Schedule.small_data`."""


class Phase(str, Enum):
    """The three phases of end-to-end prototype generation."""

    WARMUP = "warmup"
    COLLECT = "collect"
    LEARN = "learn"


class Activity(IntEnum):
    """What a call in train mode does; ranks that do different things would wait for each other forever."""

    WAIT = 0  # warm-up
    COLLECT = 1
    CLUSTER = 2  # make the first prototypes
    REFRESH = 3  # learn, and sample for a later clustering
    LEARN = 4


@with_checked_keywords
@dataclass(frozen=True, kw_only=True)
class Schedule(PlainFields):
    """Lengths of the phases and the ramp of the pseudo-label threshold, all in iterations.

    >>> schedule = Schedule.from_epochs(warmup=1, collect=1, total=80, iters_per_epoch=100)
    >>> [schedule.phase(iteration).value for iteration in (0, 100, 200)]
    ['warmup', 'collect', 'learn']
    >>> Schedule.from_dict(schedule.to_dict()) == schedule
    True

    Attributes:
        warmup: Iterations in which nothing happens.
        collect: Iterations that fill the feature queues.
        total: Iterations of the whole training.
        ramp_start: Iteration at which the pseudo-label threshold leaves its lower end; by default a sixteenth of
            ``total``, the published 5 of 80 epochs. From ``total`` on, there is no ramp: the threshold stays at its
            lower end.
        pseudo_threshold_range: Confidence threshold of pseudo-labeled points at ``ramp_start`` and at ``total``.
        extrapolate_threshold: Whether the ramp's line goes on below the lower end before ``ramp_start``, as in the
            official code. In a short training almost every pseudo label would count there, wrong ones too.
        recluster_every: ``None`` to cluster once, or the iterations between clusterings in the learn phase; sampling
            then goes on during it.
        min_rows: Stay in the collect phase until every class seen in the labels has this many rows in each group.
        max_collect: With ``min_rows``, collect at most so long; ``None`` for no bound.

    Raises:
        ValueError: A field is out of range; the message names it.
    """

    warmup: int
    collect: int
    total: int
    ramp_start: int = None  # type: ignore[assignment]  # a number once constructed
    pseudo_threshold_range: tuple[float, float] = (0.8, 0.95)
    extrapolate_threshold: bool = False
    recluster_every: int | None = None
    min_rows: int = 0
    max_collect: int | None = None

    def __post_init__(self) -> None:
        self._make_plain()
        require_integer("warmup", self.warmup, 0, MAX_COUNT)
        require_integer("collect", self.collect, 0, MAX_COUNT)
        require_integer("total", self.total, 1, MAX_COUNT)
        require(
            self.warmup + self.collect <= self.total,
            "total",
            f"at least warmup + collect ({self.warmup + self.collect})",
            self.total,
        )
        if self.ramp_start is None:
            object.__setattr__(self, "ramp_start", round(RAMP_SHARE * self.total))
        require_integer("ramp_start", self.ramp_start, 0, MAX_COUNT)
        require_bool("extrapolate_threshold", self.extrapolate_threshold)
        bounds = self.pseudo_threshold_range
        require_pair("pseudo_threshold_range", bounds, "a pair (start, end)")
        for name, bound in zip(("pseudo_threshold_range[0]", "pseudo_threshold_range[1]"), bounds, strict=True):
            require_number(name, bound, 0.0, 1.0)
        if self.recluster_every is not None:
            require_integer("recluster_every", self.recluster_every, 1, MAX_COUNT)
        require_integer("min_rows", self.min_rows, 0)
        if self.max_collect is not None:
            require_integer("max_collect", self.max_collect, self.collect, MAX_COUNT)

    @classmethod
    @checked_keywords
    def from_epochs(
        cls,
        *,
        warmup: float,
        collect: float,
        total: float,
        iters_per_epoch: int,
        ramp_start: float | None = None,
        pseudo_threshold_range: tuple[float, float] = (0.8, 0.95),
        extrapolate_threshold: bool = False,
        recluster_every: float | None = None,
        min_rows: int = 0,
        max_collect: float | None = None,
    ) -> Schedule:
        """A schedule from lengths in epochs of ``iters_per_epoch`` iterations.

        Fractions are allowed; what is not 0 lasts at least one iteration.

        The official lengths are warmup=1, collect=1, total=80 (PASCAL VOC) or 30 (COCO), and 3, 3, 200 (Cityscapes).

        Raises:
            ValueError: A length is no finite number or out of range; the message names it.
        """
        require_integer("iters_per_epoch", iters_per_epoch, 1)

        def iterations(field: str, epochs: float) -> int:
            require_number(field, epochs, 0, 1e12)
            return max(round(epochs * iters_per_epoch), int(epochs > 0))

        def optional(field: str, epochs: float | None) -> Any:
            return None if epochs is None else iterations(field, epochs)

        return cls(
            warmup=iterations("warmup", warmup),
            collect=iterations("collect", collect),
            total=iterations("total", total),
            ramp_start=optional("ramp_start", ramp_start),
            pseudo_threshold_range=pseudo_threshold_range,
            extrapolate_threshold=extrapolate_threshold,
            recluster_every=optional("recluster_every", recluster_every),
            min_rows=min_rows,
            max_collect=optional("max_collect", max_collect),
        )

    @classmethod
    def small_data(cls, total: int, **overrides: Any) -> Schedule:
        """For few labeled images and short trainings, as :meth:`BRPGConfig.small_data <brpg_lib.BRPGConfig>` is.

        A fifth of the training as warm-up, a twentieth to collect, and prototypes made anew after each twentieth: so
        the gains of ``small_data`` were measured. Sampling goes on in the learn phase, and the queues keep their
        memory; ``recluster_every=None`` clusters once.

        >>> schedule = Schedule.small_data(total=40000)
        >>> schedule.warmup, schedule.collect, schedule.recluster_every
        (8000, 2000, 2000)

        Args:
            total: Iterations of the whole training.
            overrides: Any fields, instead of these.

        Raises:
            ValueError: A field is out of range; the message names it.
        """
        require_integer("total", total, 1, MAX_COUNT)
        lengths = {name: round(share * total) for name, share in SMALL_DATA.items()}
        lengths |= {name: max(1, lengths[name]) for name in ("collect", "recluster_every")}
        return cls(total=total, **(lengths | overrides))

    def phase(self, iteration: int) -> Phase:
        """The phase at ``iteration`` (from 0), before any extension by ``min_rows``."""
        if iteration < self.warmup:
            return Phase.WARMUP
        if iteration < self.warmup + self.collect:
            return Phase.COLLECT
        return Phase.LEARN

    @overload
    def pseudo_threshold(self, iteration: int) -> float: ...

    @overload
    def pseudo_threshold(self, iteration: Tensor) -> Tensor: ...

    def pseudo_threshold(self, iteration: int | Tensor) -> float | Tensor:
        """Confidence that a pseudo label needs at ``iteration`` to become a point of the loss.

        Linear, from the lower end at ``ramp_start`` to the upper end at ``total``; it stays at the lower end before
        (unless ``extrapolate_threshold``), and at the upper end after.

        Args:
            iteration: From 0; an ``()`` int64 tensor where the host need not know it.

        Returns:
            A number, or a ``()`` float32 tensor.
        """
        low, high = self.pseudo_threshold_range
        if self.ramp_start >= self.total:
            high = low
        span = max(1, self.total - self.ramp_start)
        first = -math.inf if self.extrapolate_threshold else 0.0
        if isinstance(iteration, Tensor):
            return low + (high - low) * ((iteration - self.ramp_start).float() / span).clamp(first, 1.0)
        return low + (high - low) * min(max((iteration - self.ramp_start) / span, first), 1.0)
