"""Feature vectors on their way from the sampler to the queues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from brpg_lib.kernels.device import on_host
from brpg_lib.validation import is_integer, require, require_tensor

HIGH, LOW, FALLBACK = 0, 1, 2
"""Group indices of a sample: high confidence, low confidence, kept for rare classes."""
NONE = -1
"""Group of a pixel that is no candidate, and of a row that does not count, see :meth:`Samples.without_gaps`."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Feature vectors that the sampler chose, on their way to the queues.

    Attributes:
        features: ``(N, D)`` float32.
        classes: ``(N,)`` int64 class indices.
        groups: ``(N,)`` int64: 0 high confidence, 1 low confidence, 2 kept for rare classes.
        confidence: ``(N,)`` float32 in [0, 1].
        dropped: ``()`` int64: pixels left out because their logits or features were not finite.
    """

    features: Tensor
    classes: Tensor
    groups: Tensor
    confidence: Tensor
    dropped: Tensor

    def __len__(self) -> int:
        return self.classes.shape[0]

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What there is of each sample: features, classes, groups and confidence."""
        return self.features, self.classes, self.groups, self.confidence

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """All samples of the parts, one part after the other."""
        rows = (torch.cat(values) for values in zip(*(part.rows for part in parts), strict=True))
        features, classes, groups, confidence = rows
        return cls(features, classes, groups, confidence, torch.stack([part.dropped for part in parts]).sum())

    def none(self) -> Samples:
        """No samples, of the same types."""
        features, classes, groups, confidence = (values[:0] for values in self.rows)
        return Samples(features, classes, groups, confidence, torch.zeros_like(self.dropped))

    def of_classes(self, wanted: Tensor) -> Samples:
        """Those of the classes ``wanted (C,)`` bool; the others do not count."""
        groups = torch.where(wanted.to(self.classes.device)[self.classes], self.groups, NONE)
        return replace(self, groups=groups)

    def without_gaps(self) -> Samples:
        """Only the rows that count. The sampler makes others, of group -1, where the host would wait for a number."""
        counts = self.groups != NONE
        if on_host(counts.device) and bool(counts.all()):
            return self
        features, classes, groups, confidence = (values[counts] for values in self.rows)
        return Samples(features, classes, groups, confidence, self.dropped)

    def check(self, num_classes: int, feature_dim: int, last_group: int) -> None:
        """Check against the sizes of the queues.

        Raises:
            TypeError: A field is no tensor.
            ValueError: A shape, dtype, class or group does not fit; the message names the field.
        """
        features = self.features
        fits = isinstance(features, Tensor) and features.ndim == 2 and features.shape[1] == feature_dim
        fits = fits and features.is_floating_point() and not features.is_meta
        expected = f"a floating-point tensor (N, {feature_dim})"
        require_tensor(fits, "samples.features", expected, features)
        shape = features.shape
        for field, kind, right in (
            ("classes", "integer", is_integer),
            ("groups", "integer", is_integer),
            ("confidence", "floating-point", torch.is_floating_point),
        ):
            value = getattr(self, field)
            fits = isinstance(value, Tensor) and value.shape == shape[:1] and value.device == features.device
            expected = f"{kind} tensor ({shape[0]},) beside the features"
            require_tensor(fits and right(value), f"samples.{field}", expected, value)
        if shape[0]:
            for field, last in (("classes", num_classes - 1), ("groups", last_group)):
                low, high = (int(value) for value in getattr(self, field).aminmax())
                require(low >= 0 and high <= last, f"samples.{field}", f"integers in 0..{last}", f"{low}..{high}")
