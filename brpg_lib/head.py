"""The whole method as one module: schedule, sampling, split, clustering, loss and update."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from brpg_lib import checkpoint, diagnostics
from brpg_lib.bank import PrototypeBank
from brpg_lib.batches import LabeledBatch, Samples, UnlabeledBatch, require_same_device
from brpg_lib.clusterer import OnlineClusterer, Prototypes
from brpg_lib.config import BRPGConfig
from brpg_lib.distributed import (
    ProcessGroup,
    all_reduce_sum,
    gather_rows,
    rank,
    require_same_everywhere,
    world_size,
)
from brpg_lib.exchange import StepSums, exchange, require_agreement
from brpg_lib.kernels.random import fold
from brpg_lib.limits import ClassLimits
from brpg_lib.loss import PrototypeContrastiveLoss, balanced_mean
from brpg_lib.notices import warn
from brpg_lib.points import labeled_points, unlabeled_points
from brpg_lib.queue import DTYPES, FeatureQueue
from brpg_lib.sampler import ConfidenceSampler
from brpg_lib.schedule import Phase, Schedule
from brpg_lib.splitter import AdaptiveSplitter
from brpg_lib.state import StateModule, pack, unpack
from brpg_lib.validation import MAX_COUNT, require, require_device, require_integer

LEARN_METRICS = (
    "loss_labeled",
    "loss_unlabeled",
    "points_labeled",
    "points_unlabeled",
    "accuracy_labeled",
    "accuracy_unlabeled",
    "prototypes_used",
)
"""Metrics that are 0 outside the learn phase."""


@dataclass(frozen=True)
class HeadOutput:
    """What one call of :class:`PrototypeHead` gives back.

    Attributes:
        loss: ``()`` float32 to add to the training loss: ``loss_weight * (loss_labeled + loss_unlabeled)``. 0 with a
            gradient of 0 outside the learn phase. On several ranks that train, their mean is the mean over the points
            of all ranks, as is its gradient once DDP has averaged it: a rank with few points has a small one.
        loss_labeled: ``()`` float32, unweighted.
        loss_unlabeled: ``()`` float32, unweighted; 0 without unlabeled points.
        phase: The phase of this step.
        metrics: Scalars for a log, as detached ``()`` float32 tensors; the same keys in every phase. In train mode they
            are over all ranks.
    """

    loss: Tensor
    loss_labeled: Tensor
    loss_unlabeled: Tensor
    phase: Phase
    metrics: dict[str, Tensor]


class _Losses(NamedTuple):
    labeled: Tensor
    unlabeled: Tensor
    metrics: dict[str, Tensor]


class _Activity(IntEnum):
    """What a call in train mode does; ranks that do different things would wait for each other forever."""

    WAIT = 0  # warm-up
    COLLECT = 1
    CLUSTER = 2
    REFRESH = 3  # learn, and sample for a later clustering
    LEARN = 4


class PrototypeHead(StateModule):
    """Adds boundary-refined prototypes to a trainer: call it once per training step and add its loss.

    The state is buffers only, so it needs neither an optimizer nor DDP around it (which would broadcast the queues in
    every step), and ``state_dict()`` resumes it in any phase. In train mode a call does the phase's work and advances
    ``iteration``; in eval mode it changes nothing. Classes without prototypes do not count in the loss. While such a
    class is in the labels, sampling goes on in the learn phase, and the class joins as soon as one of its queues has as
    many rows as it wants prototypes.

    On several ranks that train together, each calls the head with its own images, however many; the heads stay equal.
    A step of the learn phase needs one all-reduce of ``4 * (C * 2 * K * (D + 2) + 5 * C + 47)`` bytes, 130 kB for
    PASCAL VOC (and 400 bytes per class with ``pseudo_label_share``). Eval mode needs none.

    Args:
        num_classes: Number of classes C.
        feature_dim: Channels D of the features.
        schedule: Lengths of the phases.
        config: Hyper-parameters; the defaults are the official ones.
        seed: Seed of all draws.
        queue_dtype: Storage type of the queues: float32, bfloat16 or float16.
        queue_device: ``None`` to keep the queues on the module's device; ``"cpu"`` for (pinned) host memory.
        process_group: Ranks that train together; ``None`` for the default group.

    Raises:
        ValueError: An argument is out of range.
    """

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
        require_integer("num_classes", num_classes, 1)
        require_integer("seed", seed, 0, MAX_COUNT)
        require(queue_dtype in DTYPES, "queue_dtype", f"one of {DTYPES}", repr(queue_dtype))
        require_device("queue_device", queue_device)
        require(isinstance(schedule, Schedule), "schedule", "a Schedule", type(schedule).__name__)
        require(isinstance(config, BRPGConfig), "config", "a BRPGConfig", type(config).__name__)
        ignored = config.ignore_index
        require(not 0 <= ignored < num_classes, "config.ignore_index", f"none of the {num_classes} classes", ignored)
        self.num_classes, self.feature_dim = num_classes, feature_dim
        self.schedule, self.config, self.seed = schedule, config, seed
        self.process_group = process_group
        self.sampler = ConfidenceSampler(
            num_classes, **config.arguments_of(ConfidenceSampler), seed=seed, process_group=process_group
        )
        self.queue = FeatureQueue(
            num_classes, feature_dim, **config.arguments_of(FeatureQueue), dtype=queue_dtype, device=queue_device
        )
        capacity = self.queue.capacity
        fits = schedule.min_rows <= capacity
        require(fits, "schedule.min_rows", f"at most the {capacity} rows of a queue", schedule.min_rows)
        self.splitter = AdaptiveSplitter(num_classes, **config.arguments_of(AdaptiveSplitter))
        self.clusterer = OnlineClusterer(
            num_classes, **config.arguments_of(OnlineClusterer), seed=seed, process_group=process_group
        )
        self.bank = PrototypeBank(
            num_classes, feature_dim, **config.arguments_of(PrototypeBank), process_group=process_group
        )
        self.limits = ClassLimits(num_classes, config.pseudo_label_share)
        self.criterion = PrototypeContrastiveLoss(**config.arguments_of(PrototypeContrastiveLoss))
        self._iteration = 0
        self._settled_mask: tuple[int, int] | None = None
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("dropped", torch.zeros((), dtype=torch.int64))
        self.register_buffer("idle", torch.zeros(self.bank.mask.shape, dtype=torch.int64))
        self.register_buffer("in_step", torch.ones(3, dtype=torch.bool), persistent=False)
        self._strict, self._introduced = True, False
        self._warned: set[str] = set()

    clock: Tensor
    idle: Tensor
    in_step: Tensor
    seen: Tensor
    dropped: Tensor

    @property
    def iteration(self) -> int:
        """Iteration of the next call in train mode. Once :attr:`settled`, reading it waits for the device."""
        if self._settled_mask is None:
            return self._iteration
        self._report(self._health())
        return int(self.clock)

    @property
    def phase(self) -> Phase:
        """Phase of the next call."""
        return Phase.LEARN if self.settled else self._phase_at(self.iteration)

    @property
    def settled(self) -> bool:
        """Whether only the learn step is left to do: every class has prototypes, and no reclustering is due.

        From then on a call never waits for the device: the iteration is a tensor, and the call can be compiled
        (``torch.compile(head, fullgraph=True)``) or captured in a CUDA graph.
        """
        return self._settled_mask is not None and (torch.compiler.is_compiling() or self._settled_mask == self._mask())

    def _mask(self) -> tuple[int, int]:
        """Identity and version of the bank's mask, to notice when somebody changes it."""
        return id(self.bank.mask), self.bank.mask._version

    def _settle(self) -> None:
        """Hand the iteration over to the device, where nothing is left for the host to decide."""
        over = self.schedule.phase(self._iteration) is Phase.LEARN and self.schedule.recluster_every is None
        self.clock.fill_(self._iteration)
        self._settled_mask = self._mask() if over and all(self.bank.present) else None

    @property
    def samples_weak_views(self) -> bool:
        """Whether the next call samples ``weak_features``; where not, a trainer may save the work of making them."""
        if self.settled or self.phase is Phase.WARMUP:
            return False
        if self.phase is Phase.COLLECT or self.schedule.recluster_every is not None:
            return True
        return any(self.bank.present) and bool(self._awaited().any())

    def forward(
        self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None = None, *, iteration: int | None = None
    ) -> HeadOutput:
        """Do one step.

        Args:
            labeled: Labeled images; ``logits`` are needed in the collect phase.
            unlabeled: Unlabeled images, or ``None`` in a supervised step.
            iteration: ``None`` to count calls, or the trainer's own count; the next call then follows on it.

        Returns:
            The loss and what to log.

        Raises:
            ValueError: A batch does not fit the head, or the ranks of a training disagree; nothing was changed. (On
                CUDA, ranks that get out of step in the learn phase are noticed when :attr:`iteration` or the state is
                read next.)
        """
        if iteration is not None:
            require_integer("iteration", iteration, 0, MAX_COUNT)
        if self.settled and (iteration is None or self.schedule.phase(iteration) is Phase.LEARN):
            self._check(labeled, unlabeled, Phase.LEARN)
            now = self.clock if iteration is None else torch.full_like(self.clock, iteration)
            output = self._step(labeled, unlabeled, Phase.LEARN, now)
            if self.training:
                self.clock.copy_(now + 1)
        else:
            # The host has to decide, from values: torch.compile must not look inside.
            decide = torch.compiler.disable(self._decide) if torch.compiler.is_compiling() else self._decide
            output = decide(labeled, unlabeled, iteration)
        if self.training and self._can_look:
            self._report(output.metrics)
        return output

    def _decide(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, iteration: int | None) -> HeadOutput:
        """A step in which the queues may be filled or clustered."""
        current = self.iteration if iteration is None else iteration
        now = torch.full_like(self.clock, current)
        phase = self._phase_at(current)
        self._check(labeled, unlabeled, phase)
        if self.training:
            with torch.autocast(labeled.features.device.type, enabled=False):
                self._prepare(labeled, unlabeled, self._activity(labeled, phase), now)
        output = self._step(labeled, unlabeled, phase, now)
        if self.training:
            self._iteration = current + 1
            self._settle()
        return output

    def _step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, phase: Phase, now: Tensor) -> HeadOutput:
        """The loss of one step and the momentum update, without a look at the host's clock."""
        threshold = self._pseudo_threshold(now).mean()  # in force, before the step moves limits
        with torch.autocast(labeled.features.device.type, enabled=False):
            losses = self._learn(labeled, unlabeled, now) if phase is Phase.LEARN else self._idle(labeled, unlabeled)
            health = self._health()
        metrics = {
            **losses.metrics,
            **health,
            "pseudo_threshold": threshold,
            "rows_high": self.queue.rows[:, 0].sum(),
            "rows_low": self.queue.rows[:, 1].sum(),
            "dropped": self.dropped.clone(),
        }
        return HeadOutput(
            loss=self.config.loss_weight * (losses.labeled + losses.unlabeled),
            loss_labeled=losses.labeled,
            loss_unlabeled=losses.unlabeled,
            phase=phase,
            metrics={name: value.float() for name, value in metrics.items()},
        )

    def _pseudo_threshold(self, now: Tensor) -> Tensor:
        """Confidence that a pseudo label needs to become a point: ``()``, or ``(C,)`` of each class."""
        threshold: Tensor = self.limits(self.schedule.pseudo_threshold(now))
        return threshold

    def _confidences(self, unlabeled: UnlabeledBatch | None) -> Tensor:
        """How confident the pseudo labels of each class are, for the limits of classes."""
        if unlabeled is None:
            return torch.zeros(self.limits.num_counts, device=self.clock.device)
        return self.limits.counts(unlabeled.pseudo_labels, unlabeled.confidence)

    def _health(self) -> dict[str, Tensor]:
        """What the prototypes look like."""
        similarity, collapsed = diagnostics.within_class_similarity(self.bank.prototypes, self.bank.mask)
        return {
            "prototypes": self.bank.mask.sum(),
            "within_class_similarity": similarity,
            "prototypes_collapsed": collapsed,
            "prototypes_dead": ((self.idle >= diagnostics.DEAD_AFTER) & self.bank.mask).sum(),
        }

    @property
    def _can_look(self) -> bool:
        """Whether reading a value costs nothing: on CUDA it would wait, under torch.compile it breaks the graph."""
        return self.clock.device.type == "cpu" and not torch.compiler.is_compiling()

    def _report(self, health: Mapping[str, Tensor]) -> None:
        """Tell, where the host may look, that ranks are out of step (always) or prototypes in a bad state (once)."""
        if world_size(self.process_group) > 1:
            require_agreement(self.in_step, f"before iteration {int(self.clock)}", self.process_group)
        found = diagnostics.warnings_about(
            *(health[name] for name in ("prototypes_dead", "prototypes_collapsed", "prototypes"))
        )
        for name, text in found.items():
            self._warn(name, text)

    def _warn(self, name: str, text: str) -> None:
        """Warn of something once."""
        if name not in self._warned:
            self._warned.add(name)
            warn(text)

    def _check(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, phase: Phase) -> None:
        if torch.compiler.is_compiling():
            return
        require(isinstance(labeled, LabeledBatch), "labeled", "a LabeledBatch", type(labeled).__name__)
        known = unlabeled is None or isinstance(unlabeled, UnlabeledBatch)
        require(known, "unlabeled", "an UnlabeledBatch or None", type(unlabeled).__name__)
        require_same_device(labeled, unlabeled, self.bank.prototypes.device)
        labeled.check(self.num_classes, self.feature_dim, self.config.ignore_index)
        if unlabeled is not None:
            unlabeled.check(self.num_classes, self.feature_dim, self.config.ignore_index)
        if phase is Phase.COLLECT and self.training:
            require(labeled.logits is not None, "labeled.logits", "logits (B, C, h, w) in the collect phase", None)

    def _phase_at(self, iteration: int) -> Phase:
        phase, schedule = self.schedule.phase(iteration), self.schedule
        if phase is not Phase.LEARN or schedule.min_rows == 0 or any(self.bank.present):
            return phase
        if schedule.max_collect is not None and iteration >= schedule.warmup + schedule.max_collect:
            return phase
        groups = self.queue.num_groups
        rows = self.queue.rows[self.seen.to(self.queue.rows.device), :groups]
        enough = len(rows) > 0 and bool((rows >= schedule.min_rows).all())
        return phase if enough else Phase.COLLECT

    def _activity(self, labeled: LabeledBatch, phase: Phase) -> _Activity:
        """What this step has to do, the same on all ranks if these agree."""
        if phase is not Phase.LEARN:
            return _Activity.WAIT if phase is Phase.WARMUP else _Activity.COLLECT
        present = self.bank.present
        if not any(present) and bool(self.queue.rows.any()):
            return _Activity.CLUSTER
        if labeled.logits is None:
            return _Activity.LEARN
        again = self.schedule.recluster_every is not None or bool(self._awaited().any())
        return _Activity.REFRESH if again else _Activity.LEARN

    def _awaited(self) -> Tensor:
        """Classes ``(C,)`` that the labels have shown, and that have no prototypes yet."""
        return self.seen & ~torch.tensor(self.bank.present, device=self.seen.device)

    def _prepare(
        self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, activity: _Activity, now: Tensor
    ) -> None:
        """Fill the queues, and cluster where it is time."""
        self._introduce()
        if activity is _Activity.LEARN:
            return  # which has an exchange of its own
        sizes = self.num_classes, self.bank.mask.numel(), self.feature_dim, self.limits.num_counts
        nothing = StepSums.nothing(*sizes, self.clock.device)
        pixels = nothing.pixels if activity is _Activity.WAIT else self._pixels(labeled)
        sums = self._exchange(nothing._replace(pixels=pixels), now, activity)
        if activity is _Activity.WAIT:
            return
        self.seen |= sums.pixels > 0
        if activity is _Activity.CLUSTER:
            self._cluster()
            return
        self._collect(labeled, unlabeled)
        if activity is _Activity.COLLECT:
            return
        elapsed, period = int(now) - self.schedule.warmup - self.schedule.collect, self.schedule.recluster_every
        if period is not None and elapsed > 0 and elapsed % period == 0:
            self._cluster()
        else:
            self._join(self._awaited())

    def _introduce(self) -> None:
        """Before the ranks first talk, make sure that they speak of the same."""
        if self._introduced or world_size(self.process_group) == 1:
            return
        own = checkpoint.flat(self._identity() | {"schedule": dataclasses.asdict(self.schedule)})
        own |= {"seed": self.seed, "iteration": self._iteration, "rows": self.queue.rows.tolist()}
        require_same_everywhere(own, self.clock.device, self.process_group)
        self._introduced = True

    def _exchange(self, sums: StepSums, now: Tensor, activity: _Activity) -> StepSums:
        """The sums over all ranks."""
        if world_size(self.process_group) == 1:
            return sums
        total, agree, mean = exchange(sums, now, int(activity), self.bank.prototypes, self.process_group)
        # In the other activities the host waits for the device anyway.
        if self._can_look or activity is not _Activity.LEARN:
            found = f"iteration {int(now)} here, {float(mean):g} on average"
            require_agreement(agree, found, self.process_group)
        self.in_step &= agree
        return total

    def _pixels(self, labeled: LabeledBatch) -> Tensor:
        """How many pixels of each class the labels show: ``(C,)`` float32."""
        labels = labeled.labels.long()
        known = (labels >= 0) & (labels < self.num_classes)
        counts = torch.zeros(self.num_classes, device=labels.device)
        return counts.index_add_(0, torch.where(known, labels, 0).flatten(), known.float().flatten())

    def _collect(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None) -> None:
        """Sample this step on all ranks and append the samples to the queues.

        Labeled rows of all ranks come before unlabeled ones, as they would in one process with the images of all.
        """
        refused = self.queue.dropped.clone()
        parts = self.sampler.sample(labeled, unlabeled)
        for part in parts:
            self.queue.append(self._of_all_ranks(part))
        lost = all_reduce_sum(parts[0].dropped + parts[1].dropped, self.process_group)
        self.dropped += lost + (self.queue.dropped - refused).to(self.dropped.device)

    def _of_all_ranks(self, samples: Samples) -> Samples:
        """The samples of all ranks, in rank order."""
        if world_size(self.process_group) == 1:
            return samples
        features, *numbers = samples.rows
        packed = torch.cat((features.float(), torch.stack([values.float() for values in numbers], dim=1)), dim=1)
        packed = torch.cat(gather_rows(packed, self.process_group))
        features, classes, groups, confidence = packed.split((self.feature_dim, 1, 1, 1), dim=1)
        return Samples(features, classes[:, 0].long(), groups[:, 0].long(), confidence[:, 0], samples.dropped)

    def _cluster(self) -> None:
        """Split and cluster all queues; a class whose queues are empty keeps the prototypes it has."""
        self.queue.fill_rare_classes()
        without = self.seen.cpu() & ~self.queue.rows.cpu().any(1)
        text = diagnostics.missing_rows(without.nonzero()[:, 0].tolist(), self.config)
        if text and not any(self.bank.present):
            self._warn("rows", text)
        self._adopt(self.clusterer(self.queue, self.splitter(self.queue).num_prototypes))

    def _join(self, awaited: Tensor) -> None:
        """Cluster the queues of the ``awaited (C,)`` classes that have enough rows by now."""
        self.queue.fill_rare_classes(among=awaited)
        wanted = torch.tensor(self.config.num_prototypes)
        if not self.config.separate_confidence:
            wanted = torch.stack((wanted.sum(), torch.zeros_like(wanted[0])))
        rows = self.queue.rows.cpu()
        ready = awaited.cpu() & ((rows >= wanted) & (wanted > 0)).any(1)
        if bool(ready.any()):
            self._adopt(self.clusterer(self.queue, wanted * ready[:, None]))

    def _adopt(self, new: Prototypes) -> None:
        """Take the prototypes of all classes that have new ones, and free queues that nothing will read again."""
        bank = self.bank
        pad = bank.mask.shape[2] - new.mask.shape[2]
        vectors = torch.nn.functional.pad(new.vectors, (0, 0, 0, pad)).to(bank.prototypes.device)
        mask = torch.nn.functional.pad(new.mask, (0, pad)).to(bank.mask.device)
        fresh = mask.flatten(1).any(1)[:, None, None]
        bank.set(torch.where(fresh[..., None], vectors, bank.prototypes), torch.where(fresh, mask, bank.mask))
        self.idle.masked_fill_(fresh, 0)
        if all(bank.present) and self.schedule.recluster_every is None:
            self.queue.release()

    def _learn(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, now: Tensor) -> _Losses:
        config = self.config
        shared: dict[str, Any] = {
            "num_classes": self.num_classes,
            "align_corners": config.align_corners,
            "ignore_index": config.ignore_index,
        }
        parts = [labeled_points(labeled, grid_size=config.grid_size, **shared)]
        if unlabeled is not None:
            parts.append(
                unlabeled_points(
                    unlabeled,
                    self._pseudo_threshold(now),
                    fold(now, self.seed, rank(self.process_group)),
                    samples_per_image=config.unlabeled_samples_per_image,
                    **shared,
                )
            )
        lengths, targets = [len(part.classes) for part in parts], [part.classes for part in parts]
        dropped = torch.stack([part.dropped for part in parts]).sum().float()
        features, classes = torch.cat([part.features for part in parts]), torch.cat(targets)
        del parts  # their features are copied
        cosine = self.bank.cosine(features)
        nearest, counted = self.bank.assign(cosine, classes)
        similarity = cosine.amax(dim=(2, 3))
        pairs = list(zip(similarity.split(lengths), targets, strict=True))
        terms = [self.criterion.sums(*pair) for pair in pairs]
        points = [diagnostics.points(*pair, self.num_classes) for pair in pairs]
        if unlabeled is None:
            terms.append(torch.zeros_like(terms[0]))
            points.append(torch.zeros_like(points[0]))
        own = StepSums(
            self.bank.pull(features, cosine, nearest, counted),
            torch.zeros(self.bank.mask.numel(), device=nearest.device).index_add_(0, nearest, counted.float()),
            torch.stack(terms).detach(),
            torch.stack(points),
            similarity.new_zeros(self.num_classes) if self.settled else self._pixels(labeled),
            dropped,
            self._confidences(unlabeled),
        )
        total = self._exchange(own, now, _Activity.LEARN) if self.training else own
        count, right = total.counts.clone().unbind(1)  # or a metric that is kept would keep all sums
        hit, expected = diagnostics.used(total.hits, self.bank.mask)
        mean = balanced_mean(total.terms, total.terms, config.point_balance)
        accuracy = right / count.clamp(min=1)
        metrics = {
            "loss_labeled": mean[0],
            "loss_unlabeled": mean[1],
            "points_labeled": count[0],
            "points_unlabeled": count[1],
            "accuracy_labeled": accuracy[0],
            "accuracy_unlabeled": accuracy[1],
            "prototypes_used": hit.sum() / expected.sum().clamp(min=1),
        }
        if self.training:
            self.seen |= total.pixels > 0
            self.limits.follow(total.confidence)
            self.dropped += total.dropped.long()
            self.idle.copy_(torch.where(hit, 0, self.idle + expected))
            self.bank.move(total.pull)
        # Each rank's part of the mean over all ranks; DDP divides by the number of ranks.
        ranks = world_size(self.process_group) if self.training else 1
        labeled_loss, unlabeled_loss = ranks * balanced_mean(torch.stack(terms), total.terms, config.point_balance)
        return _Losses(labeled_loss, unlabeled_loss, metrics)

    def _idle(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None) -> _Losses:
        """Zero losses that still reach every feature map, so that DDP finds all parameters used."""
        zeros = [batch.features[:0].float().sum() for batch in (labeled, unlabeled) if batch is not None]
        nothing = torch.zeros((), device=labeled.features.device)
        metrics = {name: nothing.clone() for name in LEARN_METRICS}
        return _Losses(zeros[0], zeros[1] if len(zeros) > 1 else nothing, metrics)

    def get_extra_state(self) -> Tensor:
        """What a checkpoint says about the head that wrote it, beside the buffers: packed JSON."""
        return pack(self._identity() | {"iteration": self.iteration, "seed": self.seed})

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the iteration and the seed of a checkpoint, so that the same draws follow."""
        values = unpack(state)
        self._iteration, self._settled_mask = int(values["iteration"]), None
        self.seed = self.sampler.seed = self.clusterer.seed = int(values["seed"])

    def _identity(self) -> dict[str, Any]:
        return {
            "version": checkpoint.VERSION,
            "num_classes": self.num_classes,
            "feature_dim": self.feature_dim,
            "queue_dtype": str(self.queue.dtype),
            "config": self.config.to_dict(),
        }

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
        if saved is not None:
            values = unpack(saved)
            checkpoint.require_loadable(self._identity(), values, self._strict)
            # What older versions did not have. In place: a copy would not reach the submodules.
            if values["version"] < 2:
                state_dict.setdefault(f"{prefix}idle", torch.zeros_like(self.idle))
            if values["version"] < 3:
                state_dict.setdefault(f"{prefix}limits.values", torch.zeros_like(self.limits.values))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        # What is not saved may have had no values (meta device), or tell of ranks that were out of step before.
        device = self.dropped.device
        self.clock = torch.zeros((), dtype=torch.int64, device=device)
        self.in_step = torch.ones(3, dtype=torch.bool, device=device)

    def extra_repr(self) -> str:
        """Sizes and progress, for ``print(head)``."""
        return f"num_classes={self.num_classes}, feature_dim={self.feature_dim}, iteration={self.iteration}"

    def __call__(self, *args: Any, **kwargs: Any) -> HeadOutput:
        """See :meth:`forward`."""
        output: HeadOutput = super().__call__(*args, **kwargs)
        return output
