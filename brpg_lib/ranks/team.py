"""The ranks that train together: they compare what they are before the first step, and where they are in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from brpg_lib.ranks.agreement import require_same_everywhere
from brpg_lib.ranks.collectives import ProcessGroup, rank, world_size
from brpg_lib.ranks.exchange import StepSums, exchange, require_agreement
from brpg_lib.schedule import Activity
from brpg_lib.state import StateModule
from brpg_lib.validation import can_read


class Team(StateModule):
    """Adds up over the ranks of a training, and notices when they no longer do the same.

    State:
        in_step: ``(3,)`` bool, what the ranks have agreed in so far, see :data:`~brpg_lib.ranks.exchange.MUST_AGREE`.
            Not saved.

    Args:
        process_group: The ranks; ``None`` for the default group.
    """

    in_step: Tensor

    def __init__(self, process_group: ProcessGroup) -> None:
        super().__init__()
        self.process_group = process_group
        self._compared = False
        self.register_state("in_step", torch.ones(3, dtype=torch.bool), persistent=False)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return world_size(self.process_group)

    @property
    def rank(self) -> int:
        """Of this process."""
        return rank(self.process_group)

    def compare_once(self, values: Callable[[], dict[str, Any]]) -> None:
        """Before the ranks first exchange sums, make sure that they are trainings of the same.

        Raises:
            ValueError: They are not; on all ranks.
        """
        if not self._compared and self.size > 1:
            require_same_everywhere(values(), self.in_step.device, self.process_group)
            self._compared = True

    def add_up(self, sums: StepSums, now: Tensor, activity: Activity, prototypes: Tensor) -> StepSums:
        """The sums over all ranks. Raises at once where reading waits for nothing, or the step waits anyway.

        Args:
            sums: Of this rank.
            now: ``()`` int64 iteration.
            activity: What this rank is doing.
            prototypes: Equal on all ranks.

        Raises:
            ValueError: They are; on all ranks.
        """
        if self.size == 1:
            return sums
        total, agree, mean = exchange(sums, now, int(activity), prototypes, self.process_group)
        if can_read(now) or activity is not Activity.LEARN:
            found = f"iteration {int(now)} here, {float(mean):g} on average"
            require_agreement(agree, found, self.process_group)
        self.in_step &= agree
        return total

    def require_in_step(self, in_step: Tensor) -> None:
        """Raise where the ranks were found out of step.

        Args:
            in_step: A copy of the buffer that can be read.

        Raises:
            ValueError: They were; on all ranks.
        """
        if self.size > 1:
            require_agreement(in_step, "in a step before this one", self.process_group)

    def reset(self) -> None:
        """Forget what was before."""
        self.start_anew(self.in_step.device)

    def start_anew(self, device: torch.device) -> None:
        """Forget what was before; there may have been no values (meta device)."""
        self.put("in_step", torch.ones(3, dtype=torch.bool, device=device))
