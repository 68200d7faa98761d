"""The whole method as one module: the hall that a training step walks through. The rooms do the work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from brpg_lib.batches import LabeledBatch, UnlabeledBatch
from brpg_lib.calls import require_lasting_call
from brpg_lib.cluster.generation import new_generation
from brpg_lib.collect.step import classes_in, collect
from brpg_lib.door import admit_step
from brpg_lib.graphs import GraphedHead
from brpg_lib.head_state import HeadState
from brpg_lib.learn import diagnostics
from brpg_lib.learn.step import Losses, finish, follow, measure, no_losses
from brpg_lib.output import HeadOutput
from brpg_lib.ranks.exchange import StepSums
from brpg_lib.schedule import Activity, Phase
from brpg_lib.validation import MAX_COUNT, require_integer


class PrototypeHead(HeadState):
    """Adds boundary-refined prototypes to a trainer: call it once per training step and add its loss.

    It has no parameters, so it needs neither an optimizer nor DDP around it, and ``state_dict()`` resumes it in any
    phase. It may lie beside the model or inside it, and the model may be wrapped, averaged, copied or moved: only the
    prototypes are a buffer, the rest of its state is not touched by what averages or broadcasts buffers.

    In train mode a call does the phase's work and advances ``iteration``; in eval mode it changes nothing. Classes
    without prototypes do not count in the loss. While such a class is in the labels, sampling goes on in the learn
    phase, and the class joins as soon as one of its queues has as many rows as it wants prototypes.

    On several ranks that train together, each calls the head with its own images, however many; the heads stay equal.
    A step of the learn phase needs one all-reduce of ``4 * (C * 2 * K * (D + 2) + 5 * C + 47)`` bytes, 130 kB for
    PASCAL VOC (and 400 bytes per class with ``pseudo_label_share``). Eval mode needs none.

    >>> from brpg_lib import Schedule
    >>> head = PrototypeHead(num_classes=2, feature_dim=4, schedule=Schedule(warmup=0, collect=1, total=9))
    >>> labels = torch.tensor([0, 1]).repeat(32).view(1, 8, 8)
    >>> features = torch.rand(1, 4, 8, 8, requires_grad=True)
    >>> logits = 9.0 * torch.nn.functional.one_hot(labels, 2).movedim(3, 1)
    >>> for _ in range(3):
    ...     out = head(LabeledBatch(features=features, logits=logits, labels=labels))
    ...     print(out.phase.value, bool(out.loss > 0))
    collect False
    learn True
    learn True

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

    __call__: Callable[..., HeadOutput]

    def forward(
        self, labeled: LabeledBatch | None, unlabeled: UnlabeledBatch | None = None, *, iteration: int | None = None
    ) -> HeadOutput:
        """Do one step.

        Args:
            labeled: Labeled images; ``logits`` are needed in the collect phase. ``None`` in a step of unlabeled images.
            unlabeled: Unlabeled images, or ``None`` in a supervised step.
            iteration: ``None`` to count calls, or the trainer's own count; the next call then follows on it.

        Returns:
            The loss and what to log.

        Raises:
            ValueError: A batch does not fit the head, or the ranks of a training disagree; nothing was changed. (On
                CUDA, ranks that get out of step in the learn phase are noticed within a hundred eager calls.)
            RuntimeError: It is called where its state would be lost, or change twice: in a part that nn.DataParallel
                replicates, or in the backward pass by torch.utils.checkpoint.
        """
        if self.training:
            require_lasting_call(self)
        if iteration is not None:
            iteration = require_integer("iteration", iteration, 0, MAX_COUNT)
            if self.training and not torch.compiler.is_compiling():
                self._first_calls.iteration_given(iteration, self._warnings)
        if self.settled and (iteration is None or self.schedule.phase(iteration) is Phase.LEARN):
            own, others = admit_step(
                labeled, unlabeled, self.bank.prototypes, self.config.ignore_index, needs_logits=False
            )
            now = self.timeline.clock if iteration is None else torch.full_like(self.timeline.clock, iteration)
            output = self._step(own, others, Phase.LEARN, now)
            if self.training:
                self.timeline.clock.copy_(now + 1)
        else:
            # The host has to decide, from values: torch.compile must not look inside.
            decide = torch.compiler.disable(self._decide) if torch.compiler.is_compiling() else self._decide
            output = decide(labeled, unlabeled, iteration)
        if self.training:
            self.report(output.metrics, output.phase, labeled is not None, unlabeled is not None)
        return output

    def _decide(
        self, labeled: LabeledBatch | None, unlabeled: UnlabeledBatch | None, iteration: int | None
    ) -> HeadOutput:
        """A step in which the queues may be filled or clustered."""
        current = self.iteration if iteration is None else iteration
        now = torch.full_like(self.timeline.clock, current)
        phase = self._phase_at(current)
        needs_logits = phase is Phase.COLLECT and self.training
        own, others = admit_step(labeled, unlabeled, self.bank.prototypes, self.config.ignore_index, needs_logits)
        if self.training:
            until_collect = self.schedule.warmup - current if self.schedule.collect else 0
            self._first_calls.train_call(own, others, current, until_collect, iteration is None, self._warnings)
            with torch.autocast(own.features.device.type, enabled=False):
                self._prepare(own, others, phase, current, now)
        output = self._step(own, others, phase, now)
        if self.training:
            self.timeline.move_to(current + 1, self.bank, self.seen)
            if self.settled and self.queue.features.numel():  # without a clustering: all prototypes were adopted
                self._release_queues()
            self._first_calls.watch(output.loss, more=not self.settled)
        else:
            self._first_calls.eval_call(own, self._warnings)
        return output

    def _prepare(
        self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, phase: Phase, iteration: int, now: Tensor
    ) -> None:
        """Fill the queues, and make prototypes where it is time."""
        self.team.compare_once(self._all_settings)
        if phase is not Phase.LEARN:
            self.clusterer.prepare(self.queue, self.bank.mask.shape[2])
        can_sample = labeled.logits is not None
        activity = self.timeline.activity(phase, self.bank, self._has_rows, self._missing(), can_sample)
        self._tell_of_idleness(phase, iteration)
        if activity is Activity.LEARN:
            return  # which has an exchange of its own
        sizes = self.num_classes, self.bank.mask.numel(), self.feature_dim, self.limits.num_counts
        nothing = StepSums.nothing(*sizes, self.dropped.device)
        if activity is Activity.WAIT:
            self.team.add_up(nothing, now, activity, self.bank.prototypes)
            return
        shown = classes_in(labeled.labels, self.num_classes)
        self.seen |= self.team.add_up(nothing._replace(shown=shown), now, activity, self.bank.prototypes).shown > 0
        if activity is Activity.CLUSTER:
            self._make_prototypes(among=None)
            self._tell_of_missing()
            for name, text in diagnostics.shown_alone(self.seen).items():
                self._warnings.warn(name, text)
            return
        waiting = activity is Activity.REFRESH and self.schedule.recluster_every is None
        wanted = self._missing() if waiting else None
        lost = collect(self.sampler, self.queue, labeled, unlabeled, self.process_group, wanted)
        self.dropped += lost.to(self.dropped.device)
        if activity is Activity.REFRESH:
            self._make_prototypes(None if self.timeline.clusters_again(iteration) else self._missing())

    def _tell_of_idleness(self, phase: Phase, iteration: int) -> None:
        """Say, once, that steps pass in which prototypes should have been there."""
        elapsed = iteration - self.schedule.warmup - self.schedule.collect
        loaded = self._first_calls.loaded
        if elapsed < 0 and loaded and any(self.bank.present):
            self._warnings.warn("goes back", diagnostics.goes_back(iteration, self.schedule))
        if elapsed < 0 or any(self.bank.present):
            return
        begins = self._first_calls.trained == 1 and iteration > 0 and self.schedule.collect > 0
        if begins and not self._has_rows():
            self._warnings.warn("begins late", diagnostics.begins_late(iteration, self.schedule, loaded))
        self._waited += 1
        if self._waited <= diagnostics.PATIENCE:
            return
        if phase is Phase.LEARN and self._warnings.is_new("nothing"):
            self._warnings.warn("nothing", diagnostics.nothing_collected(self.seen, self.config))
        elif phase is Phase.COLLECT and elapsed >= self.schedule.collect and self._warnings.is_new("prolonged"):
            text = diagnostics.still_collecting(self.queue.rows, self.seen, self.schedule.min_rows)
            self._warnings.warn("prolonged", text)

    def _make_prototypes(self, among: Tensor | None) -> None:
        """Cluster the queues of all classes, or of those ``among (C,)`` that are ready."""
        fresh = new_generation(self.queue, self.splitter, self.clusterer, self.bank, among, self.ignored_class)
        self.idle.masked_fill_(fresh, 0)
        self._release_queues()

    def _release_queues(self) -> None:
        """Give back the memory of rows that nothing will read again: all but those of classes still waited for."""
        if self.schedule.recluster_every is None:
            self.queue.keep_only(self._missing())

    def _step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, phase: Phase, now: Tensor) -> HeadOutput:
        """The loss of one step and the momentum update, without a look at the host's clock."""
        with torch.autocast(labeled.features.device.type, enabled=False):
            threshold = self.limits(self.schedule.pseudo_threshold(now))
            mean_threshold = threshold.mean()  # before the step moves the limits
            learns = phase is Phase.LEARN
            losses = self._learn(labeled, unlabeled, now, threshold) if learns else no_losses(labeled, unlabeled)
            health = diagnostics.health(self.bank, self.idle)
        config = self.config
        rows = {"rows_high": self.queue.rows[:, 0].sum(), "rows_low": self.queue.rows[:, 1].sum()}
        rest = {"pseudo_threshold": mean_threshold, **rows, "dropped": self.dropped.clone()}
        return HeadOutput(
            loss=config.loss_weight
            * (config.labeled_weight * losses.labeled + config.unlabeled_weight * losses.unlabeled),
            loss_labeled=losses.labeled,
            loss_unlabeled=losses.unlabeled,
            phase=phase,
            metrics={name: value.float() for name, value in {**losses.metrics, **health, **rest}.items()},
        )

    def _learn(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, now: Tensor, threshold: Tensor) -> Losses:
        """Measure, exchange, finish."""
        # Once every class has prototypes for good, nobody asks which are shown.
        complete = self.timeline.complete if self.settled else self.timeline.is_complete(self.bank)
        shown = classes_in(labeled.labels, self.num_classes) if not complete else torch.zeros_like(self.limits.values)
        own = measure(
            labeled,
            unlabeled,
            threshold,
            (now, self.seed, self.team.rank),
            self.bank,
            self.criterion,
            self.inner,
            shown=shown,
            confidence=self.limits.counts_of(unlabeled),
        )
        total = own.sums
        if self.training:
            total = self.team.add_up(own.sums, now, Activity.LEARN, self.bank.prototypes)
            self.seen |= total.shown > 0
            self.limits.follow(total.confidence)
            self.dropped += total.dropped.long()
            used = follow(self.bank, self.idle, total)
        else:
            used = diagnostics.share_used(*diagnostics.used(total.hits, self.bank.mask))
        ranks = self.team.size if self.training else 1
        return finish(own.terms, total, used, self.config.point_balance, ranks)

    def make_graphed(self) -> GraphedHead:
        """This head to be called as before, but with its learn step as a CUDA graph, which takes the host no time.

        The graph is captured in the first settled step, and replayed for batches of the same sizes. Elsewhere than on
        CUDA nothing changes. See :class:`~brpg_lib.graphs.GraphedHead`.
        """
        return GraphedHead(self)
