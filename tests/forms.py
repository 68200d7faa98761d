"""Made-up batches in other forms than maps of a logit per class, and the circumstances that a head is used under."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from brpg_lib import HeadOutput, LabeledBatch, PrototypeHead, UnlabeledBatch

Pair = tuple[LabeledBatch, UnlabeledBatch | None]


def rows_of(maps: Tensor) -> Tensor:
    """Maps as a transformer gives them: ``(B, N, D)``, after a class token."""
    rows = maps.detach().flatten(2).mT
    return torch.cat((torch.full_like(rows[:, :1], 99.0), rows), dim=1)


def slices_of(values: Tensor) -> Tensor:
    """Two slices of a volume: the image, and the image upside down."""
    return torch.stack((values.detach(), values.detach().flip(-2)), dim=-3)


def tokens(first: LabeledBatch, second: UnlabeledBatch | None) -> Pair:
    """Features and logits of a transformer."""
    assert first.logits is not None
    grid = tuple(first.features.shape[2:])
    one = LabeledBatch(
        features=rows_of(first.features).requires_grad_(), logits=rows_of(first.logits), labels=first.labels, grid=grid
    )
    if second is None:
        return one, None
    assert second.weak_features is not None
    assert second.weak_logits is not None
    return one, UnlabeledBatch(
        features=rows_of(second.features).requires_grad_(),
        pseudo_labels=second.pseudo_labels,
        confidence=second.confidence,
        weak_features=rows_of(second.weak_features),
        weak_logits=rows_of(second.weak_logits),
        grid=tuple(second.features.shape[2:]),
    )


def volumes(first: LabeledBatch, second: UnlabeledBatch | None) -> Pair:
    """Volumes of two slices."""
    assert first.logits is not None
    one = LabeledBatch(
        features=slices_of(first.features).requires_grad_(),
        logits=slices_of(first.logits),
        labels=slices_of(first.labels),
    )
    if second is None:
        return one, None
    assert second.weak_features is not None
    assert second.weak_logits is not None
    return one, UnlabeledBatch(
        features=slices_of(second.features).requires_grad_(),
        pseudo_labels=slices_of(second.pseudo_labels),
        confidence=slices_of(second.confidence),
        weak_features=slices_of(second.weak_features),
        weak_logits=slices_of(second.weak_logits),
    )


def binary(first: LabeledBatch, second: UnlabeledBatch | None) -> Pair:
    """One logit of a foreground, for batches of two classes."""
    assert first.logits is not None
    one = LabeledBatch(
        features=first.features, logits=first.logits[:, 1:] - first.logits[:, :1], labels=first.labels[:, None]
    )
    if second is None:
        return one, None
    assert second.weak_logits is not None
    return one, UnlabeledBatch(
        features=second.features,
        pseudo_labels=second.pseudo_labels,
        confidence=second.confidence[:, None],
        weak_features=second.weak_features,
        weak_logits=second.weak_logits[:, 1:] - second.weak_logits[:, :1],
    )


FORMS: dict[str, tuple[int, Callable[[LabeledBatch, UnlabeledBatch | None], Pair]]] = {
    "tokens": (3, tokens),
    "volumes": (3, volumes),
    "binary": (2, binary),
}
"""Number of classes, and what a form makes of batches."""


class Averaged(nn.Module):
    """A model that holds a head, and its moving average, with buffers."""

    def __init__(self, head: PrototypeHead) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"head": head})
        self.average = AveragedModel(self.model, use_buffers=True)

    def forward(self, *batches: Any, **options: Any) -> HeadOutput:
        """A training step, and one of the average."""
        out: HeadOutput = self.model["head"](*batches, **options)
        self.average.update_parameters(self.model)
        return out


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As Lightning's ``bf16-true`` has it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class UnderDefault(nn.Module):
    """A head that is made and called under another default dtype."""

    def __init__(self, head: Callable[[], PrototypeHead], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        with default_dtype(dtype):
            self.head = head()

    def forward(self, *batches: Any, **options: Any) -> HeadOutput:
        """A training step."""
        with default_dtype(self.dtype):
            out: HeadOutput = self.head(*batches, **options)
        return out
