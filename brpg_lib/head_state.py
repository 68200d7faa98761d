"""What a head holds: its parts, where the training stands, and what a checkpoint says of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from brpg_lib.checkpoint import Resumable, flat
from brpg_lib.cluster.bank import PrototypeBank
from brpg_lib.cluster.clusterer import OnlineClusterer
from brpg_lib.cluster.splitter import AdaptiveSplitter
from brpg_lib.collect.queue import DTYPES, FeatureQueue
from brpg_lib.collect.sampler import ConfidenceSampler
from brpg_lib.config import BRPGConfig
from brpg_lib.forms import NO_CLASS
from brpg_lib.keywords import with_checked_keywords
from brpg_lib.learn import diagnostics
from brpg_lib.learn.limits import ClassLimits
from brpg_lib.learn.loss import PrototypeContrastiveLoss
from brpg_lib.misuse import FirstCalls
from brpg_lib.notices import LateReader, OneTimeWarnings, warn
from brpg_lib.ranks.collectives import ProcessGroup
from brpg_lib.ranks.team import Team
from brpg_lib.schedule import Activity, Phase, Schedule
from brpg_lib.timeline import Timeline, missing_classes
from brpg_lib.validation import MAX_COUNT, require, require_device, require_instance, require_integer


@with_checked_keywords
class HeadState(Resumable):
    """The modules and the state of a :class:`~brpg_lib.PrototypeHead`, which says what the arguments are.

    State:
        seen: ``(C,)`` bool, classes that the labels have shown.
        dropped: ``()`` int64, pixels and points left out so far.
        idle: ``(C, 2, K)`` int64, steps with points of its class since a prototype was the nearest one to any.
    """

    seen: Tensor
    dropped: Tensor
    idle: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        schedule: Schedule,
        config: BRPGConfig | None = None,
        *,
        seed: int = 0,
        queue_dtype: torch.dtype = torch.float32,
        queue_device: str | torch.device | None = None,
        process_group: ProcessGroup = None,
    ) -> None:
        super().__init__()
        config = BRPGConfig() if config is None else config
        num_classes = require_integer("num_classes", num_classes, 1)
        seed = require_integer("seed", seed, 0, MAX_COUNT)
        require(queue_dtype in DTYPES, "queue_dtype", f"one of {DTYPES}", repr(queue_dtype))
        require_device("queue_device", queue_device)
        require_instance("schedule", schedule, Schedule, "a Schedule")
        require_instance("config", config, BRPGConfig, "a BRPGConfig")
        # Where a class has the index of ignored pixels, labels come in with another one for them, and it gets nothing.
        self.ignored_class = config.ignore_index if 0 <= config.ignore_index < num_classes else None
        own = config
        if self.ignored_class == BRPGConfig.ignore_index:  # few who have so many classes have chosen it
            warn(
                f"class {self.ignored_class} of {num_classes} gets no prototypes: it has the index of ignored pixels, "
                "BRPGConfig(ignore_index=...), which another number than a class should have"
            )
        if self.ignored_class is not None:
            config = dataclasses.replace(config, ignore_index=NO_CLASS)
        queue = FeatureQueue(
            num_classes, feature_dim, **config.arguments_of(FeatureQueue), dtype=queue_dtype, device=queue_device
        )
        fits = schedule.min_rows <= queue.capacity
        require(fits, "schedule.min_rows", f"at most the {queue.capacity} rows of a queue", schedule.min_rows)
        self.num_classes, self.feature_dim, self.seed = num_classes, queue.feature_dim, seed
        self.schedule, self.config, self.inner = schedule, own, config
        self.queue = queue
        self.sampler = ConfidenceSampler(
            num_classes, **config.arguments_of(ConfidenceSampler), seed=seed, process_group=process_group
        )
        self.splitter = AdaptiveSplitter(num_classes, **config.arguments_of(AdaptiveSplitter))
        self.clusterer = OnlineClusterer(
            num_classes, **config.arguments_of(OnlineClusterer), seed=seed, process_group=process_group
        )
        self.bank = PrototypeBank(
            num_classes, feature_dim, **config.arguments_of(PrototypeBank), process_group=process_group
        )
        self.limits = ClassLimits(num_classes, config.pseudo_label_share)
        self.criterion = PrototypeContrastiveLoss(**config.arguments_of(PrototypeContrastiveLoss))
        self.timeline, self.team = Timeline(schedule), Team(process_group)
        self.register_state("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.register_state("dropped", torch.zeros((), dtype=torch.int64))
        self.register_state("idle", torch.zeros(self.bank.mask.shape, dtype=torch.int64))
        self._begin_to_watch()
        if num_classes == 1:
            warn("a head with num_classes=1 has a loss of 0; foreground and background are two classes")

    def _begin_to_watch(self) -> None:
        self._warnings, self._reader, self._first_calls = OneTimeWarnings(), LateReader(), FirstCalls()
        self._without = {"points_labeled": 0, "points_unlabeled": 0}
        self._waited, self._awaited, self._told_missing = 0, 0, set[int]()

    def reset(self) -> None:
        """Back to iteration 0, without samples and prototypes, as a new head of the same seed.

        >>> from brpg_lib import LabeledBatch, PrototypeHead, Schedule
        >>> head = PrototypeHead(2, 4, Schedule(warmup=1, collect=1, total=9))
        >>> out = head(LabeledBatch(features=torch.rand(1, 4, 3, 3), labels=torch.zeros(1, 9, 9, dtype=torch.long)))
        >>> head.iteration
        1
        >>> head.reset()
        >>> head.iteration
        0
        """
        for part in (self.sampler, self.queue, self.bank, self.limits):
            part.reset()
        for values in (self.seen, self.dropped, self.idle):
            values.zero_()
        self.timeline.reset()
        self.team.reset()
        self._begin_to_watch()

    @property
    def process_group(self) -> ProcessGroup:
        """Ranks that train together."""
        return self.team.process_group

    @property
    def iteration(self) -> int:
        """Iteration of the next call in train mode. Once :attr:`settled`, reading it waits for the device."""
        return self.timeline.iteration

    @property
    def phase(self) -> Phase:
        """Phase of the next call."""
        return Phase.LEARN if self.settled else self._phase_at(self.iteration)

    @property
    def settled(self) -> bool:
        """Whether only the learn step is left to do: every class seen has prototypes, and no reclustering is due.

        From then on a call never waits for the device: the iteration is a tensor, and the call can be compiled
        (``torch.compile(head, fullgraph=True)``) or captured in a CUDA graph. A class that the labels show for the
        first time ends this until it has prototypes: at once on the CPU. On CUDA, where looking means waiting, each
        hundred calls at most have one that samples for such a class and clusters what there is of it.
        """
        return self.timeline.settled(self.bank)

    @property
    def samples_weak_views(self) -> bool:
        """Whether the next call samples ``weak_features``; where not, a trainer may save the work of making them."""
        if self.settled:
            return False
        activity = self.timeline.activity(self.phase, self.bank, self._has_rows, self._missing(), can_sample=True)
        return activity in (Activity.COLLECT, Activity.REFRESH)

    def _phase_at(self, iteration: int) -> Phase:
        return self.timeline.phase(iteration, self.bank, self.queue, self.seen)

    def _missing(self) -> Tensor:
        """Classes ``(C,)`` that the labels have shown, and that have no prototypes yet."""
        return missing_classes(self.bank, self.seen)

    def _has_rows(self) -> bool:
        """Whether the queues hold anything that prototypes can be made of: not of a class that is ignored."""
        rows = self.queue.rows
        if self.ignored_class is not None:
            rows = torch.cat((rows[: self.ignored_class], rows[self.ignored_class + 1 :]))
        return bool(rows.any())

    def _all_settings(self) -> dict[str, Any]:
        """What the ranks of a training have to have in common."""
        own = self.identity() | {"schedule": dataclasses.asdict(self.schedule)} | self.progress()
        return flat(own) | {"rows": self.queue.rows.tolist()}

    def report(self, metrics: Mapping[str, Tensor], phase: Phase, with_labeled: bool, with_unlabeled: bool) -> None:
        """Say, without waiting for it, that ranks are out of step (always) or that a step comes to little (once).

        Args:
            metrics: Of a step.
            phase: Of the step.
            with_labeled: Whether it had labeled images.
            with_unlabeled: Whether it had unlabeled ones.
        """
        named = [metrics[name] for name in diagnostics.LOOKED_AT]
        learns = phase is Phase.LEARN

        def values() -> Tensor:  # what is read may be of an earlier step, and so is what that had
            given = [torch.full_like(named[0], float(learns and there)) for there in (with_labeled, with_unlabeled)]
            return torch.cat((self.team.in_step.float(), torch.stack([*named, self._missing().any().float(), *given])))

        found = self._reader.read(self.dropped.device, values)
        if found is not None:
            self.team.require_in_step(found[:3] > 0)
            *numbers, missing, labeled, unlabeled = found[3:].tolist()
            now = dict(zip(diagnostics.LOOKED_AT, numbers, strict=True))
            for name, there in (("points_labeled", labeled), ("points_unlabeled", unlabeled)):
                if there:
                    idle = now["prototypes"] > 0 and now[name] == 0
                    since = self._without[name]
                    self._without[name] = (since + self._reader.steps(self.dropped.device) if since else 1) * idle
            for name, text in diagnostics.warnings_about(now, self._without).items():
                self._warnings.warn(name, text)
            self._awaited = self._awaited + self._reader.steps(self.dropped.device) if missing else 0
            if self._awaited > diagnostics.PATIENCE and any(self.bank.present):
                self._awaited = 0
                self._tell_of_missing()
            if missing and self.settled:
                self.timeline.unsettle()

    def _tell_of_missing(self) -> None:
        """Name classes that the labels have shown and that have no prototypes, each once. Waits for the device."""
        missing = set(self._missing().nonzero()[:, 0].tolist())
        if missing - self._told_missing:
            warn(diagnostics.missing_prototypes(sorted(missing - self._told_missing), self.config))
        self._told_missing |= missing

    def identity(self) -> dict[str, Any]:
        """What has to be the same where its state is loaded."""
        return {
            "num_classes": self.num_classes,
            "feature_dim": self.feature_dim,
            "queue_dtype": str(self.queue.dtype),
            "config": self.config.to_dict(),
        }

    def progress(self) -> dict[str, Any]:
        """What a checkpoint says beside the tensors."""
        return {"iteration": self.iteration, "seed": self.seed}

    def go_on(self, progress: Mapping[str, Any]) -> None:
        """Take over the iteration and the seed of a checkpoint, so that the same draws follow."""
        self.timeline.go_on_at(int(progress["iteration"]))
        self._first_calls.go_on()
        self.seed = self.sampler.seed = self.clusterer.seed = int(progress["seed"])

    def require_parts(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Require that the state of its queues can be loaded, which comes after its own."""
        self.queue.require_loadable(state_dict, f"{prefix}queue.")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        # What is not saved may have had no values (meta device), or tell of ranks that were out of step before.
        self.timeline.reset_clock(self.dropped.device)
        self.team.start_anew(self.dropped.device)

    def extra_repr(self) -> str:
        """Sizes and progress, for ``print(head)``."""
        sizes = f"num_classes={self.num_classes}, feature_dim={self.feature_dim}"
        return sizes if self.seen.is_meta else f"{sizes}, iteration={self.iteration}, phase={self.phase.value}"
