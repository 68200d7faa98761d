"""What ranks tell each other in a training step: sums, in one message of a size that depends on nothing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from brpg_lib.ranks.agreement import from_pieces, in_pieces
from brpg_lib.ranks.collectives import ProcessGroup, all_reduce_sum, rank, world_size
from brpg_lib.validation import require

MUST_AGREE = (
    "ranks at the same iteration",
    "batches with the same fields on all ranks",
    "the same prototypes on all ranks",
)


class StepSums(NamedTuple):
    """Sums over the points of a step, of one rank or of all.

    Attributes:
        pull: ``(M, D + 1)`` float32, what moves each of the M prototypes.
        hits: ``(M,)`` float32, points of each prototype.
        terms: ``(2, C, 2)`` float32, for labeled and unlabeled points of each class: loss, weight.
        counts: ``(2, 2)`` float32, likewise over all classes: points, points classified right.
        shown: ``(C,)`` float32, in how many of the ranks' labels each class occurs, where somebody asks.
        dropped: ``()`` float32, points left out.
        confidence: ``(n,)`` float32, pseudo labels of each class and confidence, where classes have limits of their
            own; else of length 0.
    """

    pull: Tensor
    hits: Tensor
    terms: Tensor
    counts: Tensor
    shown: Tensor
    dropped: Tensor
    confidence: Tensor

    @classmethod
    def nothing(
        cls, num_classes: int, num_prototypes: int, dim: int, num_confidences: int, device: torch.device
    ) -> StepSums:
        """No points."""
        sizes = (
            (num_prototypes, dim + 1),
            (num_prototypes,),
            (2, num_classes, 2),
            (2, 2),
            (num_classes,),
            (),
            (num_confidences,),
        )
        return cls(*(torch.zeros(size, dtype=torch.float32, device=device) for size in sizes))


def exchange(
    sums: StepSums, iteration: Tensor, activity: int, prototypes: Tensor, group: ProcessGroup
) -> tuple[StepSums, Tensor, Tensor]:
    """Add up over all ranks, by one all-reduce, and compare where they are.

    Args:
        sums: Of this rank.
        iteration: ``()`` int64.
        activity: Number of what this rank is doing; those that do something else talk at cross purposes.
        prototypes: Float32, equal on all ranks.
        group: Process group, ``None`` for the default.

    Returns:
        The sums over all ranks; whether all have the same iteration, activity and prototypes ``(3,)`` bool; and the
        mean iteration ``()`` float32.
    """
    position = torch.stack((iteration, torch.full_like(iteration, activity), _checksum(prototypes)))
    message = torch.cat([*(part.flatten() for part in sums), in_pieces(position)])
    all_reduce_sum(message, group)
    lengths = [part.numel() for part in sums]
    *parts, position = message.split([*lengths, len(message) - sum(lengths)])
    agree, mean = from_pieces(position, world_size(group))
    return StepSums(*(new.view(old.shape) for new, old in zip(parts, sums, strict=True))), agree, mean[0]


def require_agreement(agree: Tensor, where: str, group: ProcessGroup) -> None:
    """Require that :func:`exchange` has found all ranks in step.

    Args:
        agree: ``(3,)`` bool; reading it waits for the device.
        where: What is known of this rank's iteration and the others'.
        group: Process group, ``None`` for the default.

    Raises:
        ValueError: They are not; on all ranks.
    """
    own = f"on rank {rank(group)} of {world_size(group)}: {where}"
    for same, expected in zip(agree.tolist(), MUST_AGREE, strict=True):
        require(same, "process_group", expected, f"others {own}")


def _checksum(values: Tensor) -> Tensor:
    """``()`` int64 in [0, 2**42) of the bits of float32 values, in whatever order they are added."""
    return values.view(torch.int32).long().sum() & (2**42 - 1)
