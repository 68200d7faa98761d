"""The tensors of one training step, checked before anything uses them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from brpg_lib.forms import labels_of, maps_of_tokens, pixels_of, require_grid, two_classes, without_ignored
from brpg_lib.validation import can_read, describe, require, require_tensor

BatchT = TypeVar("BatchT", bound="Batch")


INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Batch:
    """What both kinds of batches can do."""

    features: Tensor
    grid: tuple[int, ...] | None

    @property
    def num_images(self) -> int:
        """Images of the step, of which caps are multiples."""
        return len(self.features)

    def to(self: BatchT, device: str | torch.device, non_blocking: bool = False) -> BatchT:
        """The same batch on a device.

        Args:
            device: Torch device or its name.
            non_blocking: As in ``torch.Tensor.to``.
        """
        fields: Any = dataclasses.fields(self)  # type: ignore[arg-type]  # subclasses are dataclasses
        values = {field.name: getattr(self, field.name) for field in fields}
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        return type(self)(**(values | moved))

    def _in_classes(self: BatchT, logits: str, labels: str, num_classes: int, ignore_index: int) -> BatchT:
        """With logits and labels, in the fields of these names, as everything behind the door takes them."""
        given: Tensor | None = getattr(self, logits)
        changed = {
            logits: None if given is None else two_classes(given, num_classes),
            labels: without_ignored(getattr(self, labels), num_classes, ignore_index),
        }
        if all(value is getattr(self, name) for name, value in changed.items()):
            return self
        replaced: Any = dataclasses.replace(self, **changed)  # type: ignore[type-var]  # subclasses are dataclasses
        return replaced  # type: ignore[no-any-return]

    def _bring_into_form(self, name: str, maps: Sequence[str], labels: str, pixels: Sequence[str]) -> None:
        """Take tokens and masks in the forms that people have them in.

        Args:
            name: Of the batch, in messages.
            maps: Names of the fields with features or logits, features first.
            labels: Name of the field with labels.
            pixels: Names of the other fields that have no channels.
        """
        grid = require_grid(f"{name}.grid", self.grid)
        for field in maps:
            object.__setattr__(self, field, maps_of_tokens(f"{name}.{field}", getattr(self, field), grid))
        object.__setattr__(self, labels, labels_of(getattr(self, labels), self.features))
        for field in pixels:
            object.__setattr__(self, field, pixels_of(getattr(self, field), self.features))


@dataclass(frozen=True, kw_only=True, eq=False)
class LabeledBatch(Batch):
    """Labeled images of one step, seen by the student. Sizes: B images, D channels, C classes.

    >>> batch = LabeledBatch(features=torch.rand(2, 8, 5, 5), labels=torch.zeros(2, 17, 17, dtype=torch.long))
    >>> batch.to("cpu").labels.shape
    torch.Size([2, 17, 17])

    Attributes:
        features: ``(B, D, h, w)`` floating point, from the representation branch, with gradient; volumes are
            ``(B, D, d, h, w)``, and everything else has one more axis then too. Tokens ``(B, N, D)`` with ``grid``.
        logits: ``(B, C, h, w)`` floating point, at the resolution of the features (tokens: ``(B, N, C)``); of two
            classes, the one logit of the foreground is enough. Needed where pixels are sampled (the collect phase);
            ``None`` elsewhere.
        labels: ``(B, H, W)`` or ``(B, 1, H, W)`` integers at image resolution: class indices or the ignore index; or
            bool for two classes.
        grid: ``(h, w)`` of tokens, row by row; tokens before these are no pixels. ``None`` for maps.

    Raises:
        ValueError: A shape, dtype or device is wrong, or two fields disagree; the message names the field.
    """

    features: Tensor
    labels: Tensor
    logits: Tensor | None = None
    grid: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._bring_into_form("labeled", ("features", "logits"), "labels", ())
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
            _require_classes("labeled.logits", self.logits, num_classes)
        _require_labels("labeled.labels", self.labels, num_classes, ignore_index)

    def admitted(self, num_classes: int, ignore_index: int) -> LabeledBatch:
        """The same with a channel of logits per class, and without labels that are ignored though a class has them."""
        return self._in_classes("logits", "labels", num_classes, ignore_index)


@dataclass(frozen=True, kw_only=True, eq=False)
class UnlabeledBatch(Batch):
    """Unlabeled images of one step. Sizes: B strong views, B' weak views, D channels, C classes.

    >>> features = torch.rand(2, 8, 5, 5, requires_grad=True)
    >>> confidence, pseudo_labels = torch.rand(2, 3, 17, 17).softmax(1).max(1)
    >>> batch = UnlabeledBatch(features=features, pseudo_labels=pseudo_labels, confidence=confidence)
    >>> batch.weak_features is None
    True

    Attributes:
        features: ``(B, D, h, w)`` floating point, the student's features of the strong (CutMixed) views, with gradient;
            volumes and tokens as in :class:`LabeledBatch`.
        pseudo_labels: ``(B, H, W)`` integers at image resolution, mixed like the views: the teacher's classes, or the
            ignore index.
        confidence: ``(B, H, W)`` floating point in [0, 1]: the teacher's probability of the pseudo label.
        weak_features: ``(B', D, h', w')`` floating point, the teacher's features of the weak views. Needed where pixels
            are sampled; ``None`` elsewhere, or to sample labeled pixels only.
        weak_logits: ``(B', C, h', w')`` floating point, the teacher's logits at the resolution of ``weak_features``.
        weak_valid: ``(B', H', W')`` bool, False where a weak view shows padding instead of an image; ``None`` if it
            never does.
        grid: ``(h, w)`` of tokens, of strong and weak views alike; ``None`` for maps.

    Raises:
        ValueError: A shape, dtype or device is wrong, or two fields disagree; the message names the field.
    """

    features: Tensor
    pseudo_labels: Tensor
    confidence: Tensor
    weak_features: Tensor | None = None
    weak_logits: Tensor | None = None
    weak_valid: Tensor | None = None
    grid: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        maps = ("features", "weak_features", "weak_logits")
        self._bring_into_form("unlabeled", maps, "pseudo_labels", ("confidence", "weak_valid"))
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
            _require_classes("unlabeled.weak_logits", self.weak_logits, num_classes)
        _require_labels("unlabeled.pseudo_labels", self.pseudo_labels, num_classes, ignore_index)
        if can_read(self.confidence) and not _within(self.confidence, 0.0, 1.001):
            valid = (self.confidence >= 0) & (self.confidence <= 1.001)  # half-precision softmax may exceed 1
            _require_all("unlabeled.confidence", "values in [0, 1]", self.confidence, valid)

    def admitted(self, num_classes: int, ignore_index: int) -> UnlabeledBatch:
        """As :meth:`LabeledBatch.admitted`."""
        return self._in_classes("weak_logits", "pseudo_labels", num_classes, ignore_index)


def _require_map(field: str, value: object) -> None:
    valid = isinstance(value, Tensor) and value.ndim in (4, 5) and value.is_floating_point() and value.numel() > 0
    hint = ""
    if isinstance(value, Tensor) and value.ndim == 3:
        hint = "; for tokens (B, N, D), give the batch grid=(h, w)"
    require_tensor(valid, field, f"a floating-point tensor (B, D, h, w) without empty dimensions{hint}", value)


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
    """Require a ``(B, H, W)`` tensor of one of ``dtypes`` beside ``features``, of a volume ``(B, D, H, W)``."""
    valid = isinstance(value, Tensor) and value.ndim == features.ndim - 1 and value.numel() > 0
    if valid:
        assert isinstance(value, Tensor)
        valid = value.dtype in dtypes and value.shape[0] == features.shape[0] and value.device == features.device
    axes = "H, W" if features.ndim == 4 else "D, H, W"
    hint = ""
    if isinstance(value, Tensor) and value.is_floating_point() and torch.float32 not in dtypes:
        hint = "; soft labels: take their argmax(dim=1), and ignore_index where they are unsure"
    expected = f"{kind} tensor ({features.shape[0]}, {axes}) on {features.device}, like the features{hint}"
    require_tensor(valid, field, expected, value)


def _require_channels(field: str, value: Tensor, channels: int) -> None:
    require_tensor(value.shape[1] == channels, field, f"{channels} channels in dimension 1", value)


def _require_classes(field: str, logits: Tensor, num_classes: int) -> None:
    one = num_classes == 2 and logits.shape[1] == 1
    expected = f"{num_classes} channels in dimension 1, one per class{', or 1' * (num_classes == 2)}"
    require_tensor(one or logits.shape[1] == num_classes, field, expected, logits)


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
