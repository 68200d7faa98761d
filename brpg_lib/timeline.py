"""Where a training stands: its iteration, its phase, and what a call has to do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from brpg_lib.cluster.bank import PrototypeBank
from brpg_lib.collect.queue import FeatureQueue
from brpg_lib.kernels.device import on_host
from brpg_lib.schedule import Activity, Phase, Schedule
from brpg_lib.state import StateModule


class Timeline(StateModule):
    """Counts the calls of a head.

    A training has two parts. At first the host decides from values what a call does, and counts the iterations itself.
    Once every class seen has prototypes and no further clustering is due, the training is *settled*: each call does the
    same, and the iteration is counted on the device, so that the host never waits for it. A class that no label has
    shown yet does not hold this back; when one comes, the training is not settled any longer until it has prototypes.
    Where the host would wait to learn of such a class, it looks now and then, and tries for one step.

    State:
        clock: ``()`` int64, the iteration once settled. Not saved: the checkpoint has the iteration as a number.

    Args:
        schedule: Lengths of the phases.

    Attributes:
        complete: Whether every class had prototypes when the training settled.
    """

    clock: Tensor

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self._counted = 0
        self._settled_with: tuple[int, int] | None = None
        self.complete = False
        self.register_state("clock", torch.zeros((), dtype=torch.int64), persistent=False)

    @property
    def iteration(self) -> int:
        """Iteration of the next call in train mode; on the meta device, where nothing counts, that of settling."""
        return self._counted if self._settled_with is None or self.clock.is_meta else int(self.clock)

    def settled(self, bank: PrototypeBank) -> bool:
        """Whether only the learn step is left to do; not any longer when somebody has changed the bank's mask."""
        return self._settled_with is not None and (
            torch.compiler.is_compiling() or self._settled_with == bank.mask_version
        )

    def move_to(self, iteration: int, bank: PrototypeBank, seen: Tensor) -> None:
        """Make ``iteration`` the next one; from where nothing is left to decide, the device counts.

        Args:
            iteration: From 0.
            bank: The prototypes so far.
            seen: ``(C,)`` bool, classes that the labels have shown.
        """
        self._counted = iteration
        self.clock.fill_(iteration)
        decided = self.schedule.phase(iteration) is Phase.LEARN and self.schedule.recluster_every is None
        decided = decided and any(bank.present)
        if decided and on_host(self.clock.device):
            decided = not bool(missing_classes(bank, seen).any())
        self._settled_with = bank.mask_version if decided else None
        self.complete = decided and self.is_complete(bank)

    def is_complete(self, bank: PrototypeBank) -> bool:
        """Whether every class has prototypes, and keeps them."""
        return self.schedule.recluster_every is None and all(bank.present)

    def unsettle(self) -> None:
        """Let the host decide again: a class has come that has no prototypes. Waits for the device."""
        self.go_on_at(self.iteration)

    def go_on_at(self, iteration: int) -> None:
        """Make ``iteration`` the next one, and let the host decide anew."""
        self._counted, self._settled_with = iteration, None

    def reset(self) -> None:
        """Back to the first iteration."""
        self.go_on_at(0)
        self.clock.zero_()

    def reset_clock(self, device: torch.device) -> None:
        """Set the clock to 0, and let the host count; it may have had no values (meta device)."""
        self.unsettle()
        self.put("clock", torch.zeros((), dtype=torch.int64, device=device))

    def phase(self, iteration: int, bank: PrototypeBank, queue: FeatureQueue, seen: Tensor) -> Phase:
        """Phase of an iteration: the schedule's, or collect for longer, where ``Schedule.min_rows`` asks for it.

        Args:
            iteration: From 0.
            bank: The prototypes so far; once there are any, the learn phase has begun.
            queue: The samples so far.
            seen: ``(C,)`` bool, classes whose queues have to hold ``min_rows`` rows.
        """
        phase, schedule = self.schedule.phase(iteration), self.schedule
        if phase is not Phase.LEARN or schedule.min_rows == 0 or any(bank.present):
            return phase
        if schedule.max_collect is not None and iteration >= schedule.warmup + schedule.max_collect:
            return phase
        rows = queue.rows[seen.to(queue.rows.device), : queue.num_groups]
        enough = len(rows) > 0 and bool((rows >= schedule.min_rows).all())
        return phase if enough else Phase.COLLECT

    def activity(
        self, phase: Phase, bank: PrototypeBank, has_rows: Callable[[], bool], missing: Tensor, can_sample: bool
    ) -> Activity:
        """What a step has to do, the same on all ranks if these agree.

        Args:
            phase: Of the step.
            bank: The prototypes so far.
            has_rows: Tells whether there are samples to make prototypes of, which the host may have to wait for.
            missing: ``(C,)`` bool, classes that the labels have shown and that have no prototypes.
            can_sample: Whether the batch has what sampling needs.
        """
        if phase is not Phase.LEARN:
            return Activity.WAIT if phase is Phase.WARMUP else Activity.COLLECT
        if not any(bank.present) and has_rows():
            return Activity.CLUSTER
        again = self.schedule.recluster_every is not None or bool(missing.any())
        return Activity.REFRESH if again and can_sample else Activity.LEARN

    def clusters_again(self, iteration: int) -> bool:
        """Whether all queues are clustered anew in a call of the learn phase.

        That is in the first call of each period, however many calls there are in an iteration, or iterations between
        calls.
        """
        period = self.schedule.recluster_every
        if period is None:
            return False
        start = self.schedule.warmup + self.schedule.collect
        before = max(self._counted - 1, start)  # iteration of the call before
        return (iteration - start) // period > (before - start) // period


def missing_classes(bank: PrototypeBank, seen: Tensor) -> Tensor:
    """Classes ``(C,)`` bool that the labels have shown, and that have no prototypes."""
    return seen & ~bank.mask.flatten(1).any(1)
