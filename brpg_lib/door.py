"""The door of the head: what comes in is checked once, and in the one form that everything behind it takes."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.batches import LabeledBatch, UnlabeledBatch
from brpg_lib.validation import require, require_instance


def admit_step(
    labeled: LabeledBatch | None,
    unlabeled: UnlabeledBatch | None,
    prototypes: Tensor,
    ignore_index: int,
    needs_logits: bool,
) -> tuple[LabeledBatch, UnlabeledBatch | None]:
    """Check the batches of a step against the prototypes that they will be compared with, and bring them into form.

    Args:
        labeled: A :class:`LabeledBatch`; ``None`` in a step without labels.
        unlabeled: An :class:`UnlabeledBatch` or ``None``.
        prototypes: ``(C, ..., D)``, on the device where the batches have to be.
        ignore_index: Label of pixels without a class; it may be that of a class.
        needs_logits: Whether labeled pixels are sampled.

    Returns:
        The batches as everything behind takes them: with a channel of logits per class, and labels that are classes or
        none. A step without labels is one with an image of one ignored pixel.

    Raises:
        ValueError: A batch does not fit; the message names the field. Under ``torch.compile`` nothing is checked.
    """
    num_classes = prototypes.shape[0]
    if not torch.compiler.is_compiling():
        known = unlabeled is None or isinstance(unlabeled, UnlabeledBatch)
        require(known, "unlabeled", "an UnlabeledBatch or None", type(unlabeled).__name__)
        if labeled is not None or unlabeled is None:
            require_instance("labeled", labeled, LabeledBatch, "a LabeledBatch")
        for name, batch in (("labeled", labeled), ("unlabeled", unlabeled)):
            if batch is not None:
                found, device = batch.features.device, prototypes.device
                require(found == device, f"{name}.features", f"a tensor on {device}, like the module", found)
                batch.check(num_classes, prototypes.shape[-1], ignore_index)
        if labeled is not None and needs_logits:
            expected = "logits (B, C, h, w) in the collect phase"
            require(labeled.logits is not None, "labeled.logits", expected, None)
    if labeled is None:
        assert unlabeled is not None
        labeled = _of_nothing(unlabeled, num_classes, ignore_index)
    others = None if unlabeled is None else unlabeled.admitted(num_classes, ignore_index)
    return labeled.admitted(num_classes, ignore_index), others


class NoLabeledBatch(LabeledBatch):
    """In place of labeled images: one of one ignored pixel, which is no image of the step."""

    @property
    def num_images(self) -> int:
        """None."""
        return 0


def _of_nothing(unlabeled: UnlabeledBatch, num_classes: int, ignore_index: int) -> NoLabeledBatch:
    """A labeled image of one ignored pixel."""
    place = (slice(1), slice(None), *[slice(1)] * (unlabeled.features.ndim - 2))
    corner = unlabeled.features.detach()[place]
    labels = torch.full_like(corner[:, 0], ignore_index, dtype=torch.int64)
    logits = corner[:, :1].expand(-1, num_classes, *corner.shape[2:])
    return NoLabeledBatch(features=corner, labels=labels, logits=logits)
