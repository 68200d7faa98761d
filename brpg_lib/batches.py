"""The tensors of one training step, checked before anything uses them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from brpg_lib.validation import can_read, describe, require, require_instance, require_tensor

BatchT = TypeVar("BatchT", bound="Batch")


INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Batch:
    """What both kinds of batches can do."""

    def to(self: BatchT, device: str | torch.device, non_blocking: bool = False) -> BatchT:
        """The same batch on a device.

        Args:
            device: Torch device or its name.
            non_blocking: As in ``torch.Tensor.to``.
        """
        fields: Any = dataclasses.fields(self)  # type: ignore[arg-type]  # subclasses are dataclasses
        values = {field.name: getattr(self, field.name) for field in fields}
        moved = {
            name: value.to(device, non_blocking=non_blocking) for name, value in values.items() if value is not None
        }
        return type(self)(**(values | moved))


@dataclass(frozen=True, kw_only=True, eq=False)
class LabeledBatch(Batch):
    """Labeled images of one step, seen by the student. Sizes: B images, D channels, C classes.

    >>> batch = LabeledBatch(features=torch.rand(2, 8, 5, 5), labels=torch.zeros(2, 17, 17, dtype=torch.long))
    >>> batch.to("cpu").labels.shape
    torch.Size([2, 17, 17])

    Attributes:
        features: ``(B, D, h, w)`` floating point, from the representation branch, with gradient.
        logits: ``(B, C, h, w)`` floating point, at the resolution of the features. Needed where pixels are sampled
            (the collect phase); ``None`` elsewhere.
        labels: ``(B, H, W)`` integers at image resolution: class indices or the ignore index.

    Raises:
        ValueError: A shape, dtype or device is wrong, or two fields disagree; the message names the field.
    """

    features: Tensor
    labels: Tensor
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        _require_map("labeled.features", self.features)
        if self.logits is not None:
            _require_logits("labeled.logits", self.logits, "labeled.features", self.features)
        _require_pixels("labeled.labels", self.labels, self.features, INTEGER_DTYPES)

    def check(self, num_classes: int, feature_dim: int, ignore_index: int) -> None:
        """Check against the sizes of the module that will use the batch, and the range of the labels.

        Ranges are read on the CPU only: on CUDA that would stall the stream, and labels out of range are ignored.

        Raises:
            ValueError: A channel count or label is wrong; the message names the field.
        """
        _require_channels("labeled.features", self.features, feature_dim)
        if self.logits is not None:
            _require_channels("labeled.logits", self.logits, num_classes)
        _require_labels("labeled.labels", self.labels, num_classes, ignore_index)


@dataclass(frozen=True, kw_only=True, eq=False)
class UnlabeledBatch(Batch):
    """Unlabeled images of one step. Sizes: B strong views, B' weak views, D channels, C classes.

    >>> features = torch.rand(2, 8, 5, 5, requires_grad=True)
    >>> confidence, pseudo_labels = torch.rand(2, 3, 17, 17).softmax(1).max(1)
    >>> batch = UnlabeledBatch(features=features, pseudo_labels=pseudo_labels, confidence=confidence)
    >>> batch.weak_features is None
    True

    Attributes:
        features: ``(B, D, h, w)`` floating point, the student's features of the strong (CutMixed) views, with gradient.
        pseudo_labels: ``(B, H, W)`` integers at image resolution, mixed like the views: the teacher's classes, or the
            ignore index.
        confidence: ``(B, H, W)`` floating point in [0, 1]: the teacher's probability of the pseudo label.
        weak_features: ``(B', D, h', w')`` floating point, the teacher's features of the weak views. Needed where pixels
            are sampled; ``None`` elsewhere, or to sample labeled pixels only.
        weak_logits: ``(B', C, h', w')`` floating point, the teacher's logits at the resolution of ``weak_features``.
        weak_valid: ``(B', H', W')`` bool, False where a weak view shows padding instead of an image; ``None`` if it
            never does.

    Raises:
        ValueError: A shape, dtype or device is wrong, or two fields disagree; the message names the field.
    """

    features: Tensor
    pseudo_labels: Tensor
    confidence: Tensor
    weak_features: Tensor | None = None
    weak_logits: Tensor | None = None
    weak_valid: Tensor | None = None

    def __post_init__(self) -> None:
        _require_map("unlabeled.features", self.features)
        _require_pixels("unlabeled.pseudo_labels", self.pseudo_labels, self.features, INTEGER_DTYPES)
        _require_pixels("unlabeled.confidence", self.confidence, self.features, FLOAT_DTYPES, "a floating-point")
        require(
            self.confidence.shape == self.pseudo_labels.shape,
            "unlabeled.confidence",
            f"the shape of unlabeled.pseudo_labels {tuple(self.pseudo_labels.shape)}",
            tuple(self.confidence.shape),
        )
        if self.weak_features is None or self.weak_logits is None:
            both_missing = self.weak_features is None and self.weak_logits is None
            missing = "weak_features" if self.weak_features is None else "weak_logits"
            require(both_missing, f"unlabeled.{missing}", "weak_features and weak_logits together, or neither", None)
            alone = self.weak_valid is not None
            require(not alone, "unlabeled.weak_valid", "None without weak_features", describe(self.weak_valid))
            return
        _require_map("unlabeled.weak_features", self.weak_features)
        _require_same(
            "unlabeled.weak_features", self.weak_features, "unlabeled.features", self.features, lambda t: t.device
        )
        _require_logits("unlabeled.weak_logits", self.weak_logits, "unlabeled.weak_features", self.weak_features)
        if self.weak_valid is not None:
            _require_pixels("unlabeled.weak_valid", self.weak_valid, self.weak_features, (torch.bool,), "a bool")

    def check(self, num_classes: int, feature_dim: int, ignore_index: int) -> None:
        """Check against the sizes of the module that will use the batch, and the ranges of labels and confidence.

        Ranges are read on the CPU only: on CUDA that would stall the stream, and pixels out of range are ignored.

        Raises:
            ValueError: A channel count, label or confidence is wrong; the message names the field.
        """
        _require_channels("unlabeled.features", self.features, feature_dim)
        if self.weak_features is not None and self.weak_logits is not None:
            _require_channels("unlabeled.weak_features", self.weak_features, feature_dim)
            _require_channels("unlabeled.weak_logits", self.weak_logits, num_classes)
        _require_labels("unlabeled.pseudo_labels", self.pseudo_labels, num_classes, ignore_index)
        if can_read(self.confidence) and not _within(self.confidence, 0.0, 1.001):
            valid = (self.confidence >= 0) & (self.confidence <= 1.001)  # half-precision softmax may exceed 1
            _require_all("unlabeled.confidence", "values in [0, 1]", self.confidence, valid)


def check_step(labeled: object, unlabeled: object, prototypes: Tensor, ignore_index: int, needs_logits: bool) -> None:
    """Check the batches of a step against the prototypes that they will be compared with.

    Args:
        labeled: A :class:`LabeledBatch`.
        unlabeled: An :class:`UnlabeledBatch` or None.
        prototypes: ``(C, ..., D)``, on the device where the batches have to be.
        ignore_index: Label of pixels without a class.
        needs_logits: Whether labeled pixels are sampled.

    Raises:
        ValueError: A batch does not fit; the message names the field. Under ``torch.compile`` nothing is checked.
    """
    if torch.compiler.is_compiling():
        return
    device, num_classes, feature_dim = prototypes.device, prototypes.shape[0], prototypes.shape[-1]
    require_instance(
        "labeled",
        labeled,
        LabeledBatch,
        "a LabeledBatch",
    )
    known = unlabeled is None or isinstance(unlabeled, UnlabeledBatch)
    require(known, "unlabeled", "an UnlabeledBatch or None", type(unlabeled).__name__)
    for name, batch in (("labeled", labeled), ("unlabeled", unlabeled)):
        if isinstance(batch, (LabeledBatch, UnlabeledBatch)):
            found = batch.features.device
            require(found == device, f"{name}.features", f"a tensor on {device}, like the module", found)
            batch.check(num_classes, feature_dim, ignore_index)
    if needs_logits and isinstance(labeled, LabeledBatch):
        expected = "logits (B, C, h, w) in the collect phase"
        require(labeled.logits is not None, "labeled.logits", expected, None)


def _require_map(field: str, value: object) -> None:
    valid = isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point() and value.numel() > 0
    require_tensor(valid, field, "a floating-point tensor (B, D, h, w) without empty dimensions", value)


def _require_logits(field: str, logits: object, features_field: str, features: Tensor) -> None:
    _require_map(field, logits)
    assert isinstance(logits, Tensor)
    _require_same(field, logits, features_field, features, lambda t: (t.shape[0], *t.shape[2:]))
    _require_same(field, logits, features_field, features, lambda t: t.device)


def _require_same(field: str, value: Tensor, other_field: str, other: Tensor, key: Callable[[Tensor], object]) -> None:
    expected = f"images, height, width and device of {other_field} ({describe(other)})"
    require_tensor(key(value) == key(other), field, expected, value)


def _require_pixels(
    field: str, value: object, features: Tensor, dtypes: tuple[torch.dtype, ...], kind: str = "an integer"
) -> None:
    """Require a ``(B, H, W)`` tensor of one of ``dtypes`` beside ``features``."""
    valid = isinstance(value, Tensor) and value.ndim == 3 and value.numel() > 0
    if valid:
        assert isinstance(value, Tensor)
        valid = value.dtype in dtypes and value.shape[0] == features.shape[0] and value.device == features.device
    expected = f"{kind} tensor ({features.shape[0]}, H, W) on {features.device}, like the features"
    require_tensor(valid, field, expected, value)


def _require_channels(field: str, value: Tensor, channels: int) -> None:
    require_tensor(value.shape[1] == channels, field, f"{channels} channels in dimension 1", value)


def _require_labels(field: str, labels: Tensor, num_classes: int, ignore_index: int) -> None:
    if can_read(labels) and not _within(labels, 0, num_classes - 1):
        labels = labels.long()  # comparing uint8 with -1 or 300 would wrap around
        valid = ((labels >= 0) & (labels < num_classes)) | (labels == ignore_index)
        _require_all(field, f"classes 0..{num_classes - 1} or ignore_index {ignore_index}", labels, valid)


def _require_all(field: str, expected: str, values: Tensor, valid: Tensor) -> None:
    if not bool(valid.all()):
        found = values[~valid].unique()[:5].tolist()
        require(False, field, expected, f"{int((~valid).sum())} other values such as {found}")


def _within(values: Tensor, low: float, high: float) -> bool:
    """Whether all values are in [low, high], in one pass; not if one is NaN."""
    smallest, largest = values.aminmax()
    return low <= smallest.item() and largest.item() <= high
