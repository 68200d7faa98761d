"""The whole method as one module: schedule, sampling, split, clustering, loss and update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from brpg_lib import diagnostics
from brpg_lib.bank import PrototypeBank
from brpg_lib.batches import LabeledBatch, Samples, UnlabeledBatch, require_same_device
from brpg_lib.clusterer import OnlineClusterer, Prototypes
from brpg_lib.config import BRPGConfig
from brpg_lib.distributed import ProcessGroup, all_reduce_sum, gather_rows, rank
from brpg_lib.kernels.random import fold
from brpg_lib.loss import PrototypeContrastiveLoss
from brpg_lib.points import labeled_points, unlabeled_points
from brpg_lib.queue import FeatureQueue
from brpg_lib.sampler import ConfidenceSampler
from brpg_lib.schedule import Phase, Schedule
from brpg_lib.splitter import AdaptiveSplitter
from brpg_lib.state import StateModule, pack, unpack
from brpg_lib.validation import require, require_integer

STATE_VERSION = 1


@dataclass(frozen=True)
class HeadOutput:
    """What one call of :class:`PrototypeHead` gives back.

    Attributes:
        loss: ``()`` float32 to add to the training loss: ``loss_weight * (loss_labeled + loss_unlabeled)``. 0 with a
            gradient of 0 outside the learn phase.
        loss_labeled: ``()`` float32, unweighted.
        loss_unlabeled: ``()`` float32, unweighted; 0 without unlabeled points.
        phase: The phase of this step.
        metrics: Scalars for a log, as detached ``()`` float32 tensors; the same keys in every phase.
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


class PrototypeHead(StateModule):
    """Adds boundary-refined prototypes to a trainer: call it once per training step and add its loss.

    The state is buffers only, so it needs neither an optimizer nor DDP around it (which would broadcast the queues in
    every step), and ``state_dict()`` resumes it in any phase. In train mode a call does the phase's work and advances
    ``iteration``; in eval mode it changes nothing. Classes without prototypes do not count in the loss. While such a
    class is in the labels, sampling goes on in the learn phase, and the class joins as soon as one of its queues has as
    many rows as it wants prototypes.

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
        self.clusterer = OnlineClusterer(num_classes, **config.arguments_of(OnlineClusterer), seed=seed)
        self.bank = PrototypeBank(
            num_classes, feature_dim, **config.arguments_of(PrototypeBank), process_group=process_group
        )
        self.criterion = PrototypeContrastiveLoss(**config.arguments_of(PrototypeContrastiveLoss))
        self._iteration = 0
        self._settled_mask: tuple[int, int] | None = None
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("dropped", torch.zeros((), dtype=torch.int64))

    clock: Tensor
    seen: Tensor
    dropped: Tensor

    @property
    def iteration(self) -> int:
        """Iteration of the next call in train mode. Once :attr:`settled`, reading it waits for the device."""
        return self._iteration if self._settled_mask is None else int(self.clock)

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
        phase = self.phase
        return phase is Phase.COLLECT or (phase is Phase.LEARN and self.schedule.recluster_every is not None)

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
            ValueError: A batch does not fit the head; nothing was changed.
        """
        if iteration is not None:
            require_integer("iteration", iteration, 0)
        if self.settled and (iteration is None or self.schedule.phase(iteration) is Phase.LEARN):
            self._check(labeled, unlabeled, Phase.LEARN)
            now = self.clock if iteration is None else torch.full_like(self.clock, iteration)
            output = self._step(labeled, unlabeled, Phase.LEARN, now)
            if self.training:
                self.clock.copy_(now + 1)
            return output
        # The host has to decide, from values: torch.compile must not look inside.
        decide = torch.compiler.disable(self._decide) if torch.compiler.is_compiling() else self._decide
        decided: HeadOutput = decide(labeled, unlabeled, iteration)
        return decided

    def _decide(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, iteration: int | None) -> HeadOutput:
        """A step in which the queues may be filled or clustered."""
        current = self.iteration if iteration is None else iteration
        phase = self._phase_at(current)
        self._check(labeled, unlabeled, phase)
        if self.training:
            with torch.autocast(labeled.features.device.type, enabled=False):
                self._prepare(labeled, unlabeled, phase, current)
        output = self._step(labeled, unlabeled, phase, torch.full_like(self.clock, current))
        if self.training:
            self._iteration = current + 1
            self._settle()
        return output

    def _step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, phase: Phase, now: Tensor) -> HeadOutput:
        """The loss of one step and the momentum update, without a look at the host's clock."""
        with torch.autocast(labeled.features.device.type, enabled=False):
            losses = self._learn(labeled, unlabeled, now) if phase is Phase.LEARN else self._idle(labeled, unlabeled)
            collapse = diagnostics.within_class_similarity(self.bank.prototypes, self.bank.mask)
        metrics = {
            **losses.metrics,
            "loss_labeled": losses.labeled.detach(),
            "loss_unlabeled": losses.unlabeled.detach(),
            "pseudo_threshold": self.schedule.pseudo_threshold(now),
            "prototypes": self.bank.mask.sum(),
            "within_class_similarity": collapse,
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

    def _prepare(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, phase: Phase, iteration: int) -> None:
        """Fill the queues, and cluster where it is time."""
        if phase is Phase.WARMUP:
            return
        if phase is Phase.COLLECT:
            self._see(labeled)
            self._collect(labeled, unlabeled)
            return
        present = self.bank.present
        if not any(present) and bool(self.queue.rows.any()):
            self._cluster()
            return
        period = self.schedule.recluster_every
        if (period is None and all(present)) or labeled.logits is None:
            return
        self._see(labeled)
        awaited = self.seen & ~torch.tensor(present, device=self.seen.device)
        if period is None and not bool(awaited.any()):
            return
        self._collect(labeled, unlabeled)
        elapsed = iteration - self.schedule.warmup - self.schedule.collect
        if period is not None and elapsed > 0 and elapsed % period == 0:
            self._cluster()
        else:
            self._join(awaited)

    def _see(self, labeled: LabeledBatch) -> None:
        """Note which classes the labels show."""
        labels = labeled.labels.long()
        known = (labels >= 0) & (labels < self.num_classes)
        counts = torch.zeros(self.num_classes, device=labels.device)
        counts.index_add_(0, torch.where(known, labels, 0).flatten(), known.float().flatten())
        self.seen |= all_reduce_sum(counts, self.process_group) > 0

    def _collect(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None) -> None:
        """Sample this step on all ranks and append the samples to the queues."""
        samples = self.sampler(labeled, unlabeled)
        dropped = self.queue.dropped.clone()
        features, classes, groups, confidence = (
            gather_rows(field, self.process_group)
            for field in (samples.features, samples.classes, samples.groups, samples.confidence)
        )
        self.queue.append(Samples(features, classes, groups, confidence, samples.dropped))
        self.dropped += samples.dropped + (self.queue.dropped - dropped).to(self.dropped.device)

    def _cluster(self) -> None:
        """Split and cluster all queues; a class whose queues are empty keeps the prototypes it has."""
        self.queue.fill_rare_classes()
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
                    self.schedule.pseudo_threshold(now),
                    fold(now, self.seed, rank(self.process_group)),
                    samples_per_image=config.unlabeled_samples_per_image,
                    **shared,
                )
            )
        lengths, targets = [len(part.classes) for part in parts], [part.classes for part in parts]
        dropped = torch.stack([part.dropped for part in parts]).sum()
        features, classes = torch.cat([part.features for part in parts]), torch.cat(targets)
        del parts  # their features are copied
        cosine = self.bank.cosine(features)
        nearest, counted = self.bank.assign(cosine, classes)
        similarity = cosine.amax(dim=(2, 3))
        terms = [self._term(*part) for part in zip(similarity.split(lengths), targets, strict=True)]
        if unlabeled is None:
            terms.append((terms[0][0].new_zeros(()), terms[0][1].new_zeros(()), terms[0][2].new_zeros(())))
        (labeled_loss, labeled_count, labeled_accuracy), (unlabeled_loss, unlabeled_count, unlabeled_accuracy) = terms
        metrics = {
            "points_labeled": labeled_count,
            "points_unlabeled": unlabeled_count,
            "accuracy_labeled": labeled_accuracy,
            "accuracy_unlabeled": unlabeled_accuracy,
            "prototypes_used": diagnostics.used_share(nearest, counted, self.bank.mask),
        }
        if self.training:
            self.dropped += dropped
            self.bank.move(features, cosine, nearest, counted)
        return _Losses(labeled_loss, unlabeled_loss, metrics)

    def _term(self, similarity: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, number of points and accuracy of one term."""
        count = (classes != self.config.ignore_index).sum()
        share_right = diagnostics.accuracy(similarity, classes, self.num_classes)
        return self.criterion(similarity, classes), count, share_right

    def _idle(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None) -> _Losses:
        """Zero losses that still reach every feature map, so that DDP finds all parameters used."""
        zeros = [batch.features[:0].float().sum() for batch in (labeled, unlabeled) if batch is not None]
        nothing = torch.zeros((), device=labeled.features.device)
        names = ("points_labeled", "points_unlabeled", "accuracy_labeled", "accuracy_unlabeled", "prototypes_used")
        return _Losses(zeros[0], zeros[1] if len(zeros) > 1 else nothing, dict.fromkeys(names, nothing))

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
            "version": STATE_VERSION,
            "num_classes": self.num_classes,
            "feature_dim": self.feature_dim,
            "queue_dtype": str(self.queue.dtype),
            "config": self.config.to_dict(),
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(f"{prefix}_extra_state")
        if saved is not None:
            own = _flat(self._identity())
            found = {name: value for name, value in _flat(unpack(saved)).items() if name not in ("iteration", "seed")}
            differing = [
                f"{name} is {found.get(name)!r}, here {own.get(name)!r}"
                for name in own | found
                if own.get(name) != found.get(name)
            ]
            require(not differing, "state_dict", "the state of a head like this one", "; ".join(differing))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Sizes and progress, for ``print(head)``."""
        return f"num_classes={self.num_classes}, feature_dim={self.feature_dim}, iteration={self.iteration}"

    def __call__(self, *args: Any, **kwargs: Any) -> HeadOutput:
        """See :meth:`forward`."""
        output: HeadOutput = super().__call__(*args, **kwargs)
        return output


def _flat(state: dict[str, Any]) -> dict[str, Any]:
    """Nested settings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for name, value in state.items():
        nested = value.items() if isinstance(value, dict) else ()
        flat.update({f"{name}.{key}": inner for key, inner in nested} or {name: value})
    return flat
