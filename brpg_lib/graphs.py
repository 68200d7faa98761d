"""Replaying the learn step as a CUDA graph: what the host would launch one by one is launched at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from brpg_lib.batches import LabeledBatch, UnlabeledBatch
from brpg_lib.head_state import HeadState
from brpg_lib.output import HeadOutput
from brpg_lib.schedule import Phase

CAPTURING = "cuda"
"""Devices that graphs can be captured on."""
CHANGED = ("bank.prototypes", "idle", "seen", "dropped", "timeline.clock", "limits.values", "team.in_step")
"""Buffers that a learn step changes; capturing one is a rehearsal, after which they are what they were."""


class GraphedHead:
    """Calls a head, and once it is settled on CUDA, replays a graph of the call instead.

    Everything else is a call of the head: the phases before, batches of another size than the first ones (such as the
    last of an epoch), supervised steps, eval mode, other devices. The state stays in the head.

    >>> from brpg_lib import PrototypeHead, Schedule
    >>> head = PrototypeHead(num_classes=2, feature_dim=4, schedule=Schedule(warmup=0, collect=1, total=9))
    >>> step = head.make_graphed()
    >>> labels = torch.tensor([0, 1]).repeat(32).view(1, 8, 8)
    >>> logits = 9.0 * torch.nn.functional.one_hot(labels, 2).movedim(3, 1)
    >>> step(LabeledBatch(features=torch.rand(1, 4, 8, 8), logits=logits, labels=labels)).phase.value
    'collect'

    Args:
        head: A :class:`~brpg_lib.PrototypeHead`.
    """

    def __init__(self, head: HeadState) -> None:
        self.head = head
        self._names: list[str] = []
        self._captured: tuple[object, Callable[..., tuple[Tensor, ...]]] | None = None

    def __call__(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None = None) -> HeadOutput:
        """Do one step; as :meth:`brpg_lib.PrototypeHead.forward`, with one gradient for each output."""
        ready = self.head.settled and self.head.training and labeled.features.device.type == CAPTURING
        if not ready or unlabeled is None or torch.cuda.is_current_stream_capturing():
            found: HeadOutput = self.head(labeled, unlabeled)
            return found
        tensors = (
            labeled.features,
            labeled.labels,
            unlabeled.features,
            unlabeled.pseudo_labels,
            unlabeled.confidence,
        )
        looks = tuple((value.shape, value.stride(), value.dtype, value.requires_grad) for value in tensors)
        if self._captured is None:
            self._captured = looks, self._capture(tensors)
        captured, replay = self._captured
        if looks != captured:
            found = self.head(labeled, unlabeled)
            return found
        loss, loss_labeled, loss_unlabeled, numbers = replay(*tensors)
        # The next replay writes to the same memory.
        metrics = dict(zip(self._names, numbers.clone().unbind(), strict=True))
        self.head.report(metrics, Phase.LEARN, with_labeled=True, with_unlabeled=True)
        return HeadOutput(loss, loss_labeled, loss_unlabeled, Phase.LEARN, metrics)

    def _capture(self, tensors: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        """A function of such tensors that replays a step."""

        def step(features: Tensor, labels: Tensor, others: Tensor, pseudo: Tensor, sure: Tensor) -> tuple[Tensor, ...]:
            out: HeadOutput = self.head(
                LabeledBatch(features=features, labels=labels),
                UnlabeledBatch(features=others, pseudo_labels=pseudo, confidence=sure),
            )
            self._names = list(out.metrics)
            return out.loss, out.loss_labeled, out.loss_unlabeled, torch.stack(list(out.metrics.values()))

        before = {name: self.head.state(name).clone() for name in CHANGED}
        samples = tuple(value.detach().clone().requires_grad_(value.requires_grad) for value in tensors)
        replay: Any = torch.cuda.make_graphed_callables(step, samples)
        for name, value in before.items():
            self.head.state(name).copy_(value)
        found: Callable[..., tuple[Tensor, ...]] = replay
        return found
