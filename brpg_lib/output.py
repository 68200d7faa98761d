"""What a call of the head gives back, and what its metrics mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from brpg_lib.schedule import Phase


class Metric(NamedTuple):
    """What a number in the log says.

    Attributes:
        meaning: In a sentence.
        unit: Of the number.
        phases: ``"learn"`` where it is 0 in the other phases, or ``"all"``.
    """

    meaning: str
    unit: str
    phases: str


METRICS: Mapping[str, Metric] = {
    "loss_labeled": Metric("Mean loss of the labeled points of all ranks, unweighted.", "nats", "learn"),
    "loss_unlabeled": Metric("Mean loss of the unlabeled points of all ranks, unweighted.", "nats", "learn"),
    "points_labeled": Metric("Labeled points of a class; others lie on ignored pixels.", "points", "learn"),
    "points_unlabeled": Metric("Unlabeled points with a reliable pseudo label.", "points", "learn"),
    "accuracy_labeled": Metric("Labeled points whose nearest prototype is of their class.", "share", "learn"),
    "accuracy_unlabeled": Metric("Unlabeled points whose nearest prototype is of their class.", "share", "learn"),
    "prototypes_used": Metric(
        "Prototypes that some point is nearest to, of those of classes with points.", "share", "learn"
    ),
    "prototypes": Metric("Prototypes of all classes and groups.", "prototypes", "all"),
    "within_class_similarity": Metric("Mean cosine between two prototypes of one class.", "cosine", "all"),
    "prototypes_collapsed": Metric("Prototypes as good as equal to another one of their class.", "prototypes", "all"),
    "prototypes_dead": Metric("Prototypes no point was nearest to for 500 steps with its class.", "prototypes", "all"),
    "pseudo_threshold": Metric(
        "Confidence that a pseudo label needs to become a point (mean over classes).", "probability", "all"
    ),
    "rows_high": Metric("Rows in the queues of confident features.", "rows", "all"),
    "rows_low": Metric("Rows in the queues of uncertain features.", "rows", "all"),
    "dropped": Metric("Pixels and points left out so far, not finite or with an unknown label.", "pixels", "all"),
}
"""Every key of :attr:`HeadOutput.metrics`, in order."""


@dataclass(frozen=True, eq=False)
class HeadOutput:
    """What one call of :class:`~brpg_lib.PrototypeHead` gives back.

    Attributes:
        loss: ``()`` float32 to add to the training loss, ``loss_weight * (labeled_weight * loss_labeled +
            unlabeled_weight * loss_unlabeled)``; 0 with a gradient of 0 outside the learn phase. On several ranks that
            train it is the mean over the points of all ranks, the same everywhere; its gradient is this rank's part,
            and that mean's once DDP has averaged it: a rank with few points has a small one.
        loss_labeled: ``()`` float32, its labeled part, unweighted.
        loss_unlabeled: ``()`` float32, its unlabeled part, unweighted; 0 without unlabeled points.
        phase: The phase of this step.
        metrics: Scalars for a log, as detached ``()`` float32 tensors, with the keys of :data:`METRICS` in every phase.
            In train mode they are over all ranks.
    """

    loss: Tensor
    loss_labeled: Tensor
    loss_unlabeled: Tensor
    phase: Phase
    metrics: dict[str, Tensor]
