"""Feature queues: the most recent samples of each class and group."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from brpg_lib.collect.buffers import QueueBuffers
from brpg_lib.collect.rare_classes import keep_most_confident, refills
from brpg_lib.collect.samples import FALLBACK, LOW, NONE, Samples
from brpg_lib.config import BRPGConfig
from brpg_lib.kernels.choosing import put_rows
from brpg_lib.kernels.segments import counts_by_index, positions_in_group
from brpg_lib.kernels.vectors import is_finite
from brpg_lib.keywords import with_checked_keywords
from brpg_lib.validation import require, require_device, require_instance, require_integer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@with_checked_keywords
class FeatureQueue(QueueBuffers):
    """First-in-first-out ring buffers of feature vectors and their confidence, one per class and group.

    State (``S`` groups are stored: 2, or 1 of twice the capacity with ``separate_confidence=False``):
        features: ``(C, S, capacity, D)`` in ``dtype``.
        confidence: ``(C, S, capacity)`` float32.
        rows: ``(C, 2)`` int64, valid rows; the second column stays 0 for a pooled queue.
        cursor: ``(C, 2)`` int64, where the next row goes.
        dropped: ``()`` int64, rows refused so far because they were not finite.

    A state dict holds the rows in use, one queue after the other: ``features`` is ``(sum of rows, D)`` there.

    >>> from brpg_lib import Samples
    >>> queue = FeatureQueue(num_classes=2, feature_dim=8, queue_size=100)
    >>> confidence, nothing = torch.ones(3), torch.tensor(0)
    >>> queue.append(Samples(torch.rand(3, 8), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), confidence, nothing))
    >>> queue.rows
    tensor([[1, 1],
            [1, 0]])

    Args:
        num_classes: Number of classes C.
        feature_dim: Channels D of a feature vector.
        queue_size: Rows of each class and group queue.
        separate_confidence: ``False`` pools the high and the low group (the paper's ablation baseline).
        rare_class_fallback: Keep ``2 * queue_size`` further rows per class: its most confident ground-truth pixels,
            right or wrong, for groups of fewer than ten rows (the paper's COCO path).
        dtype: Storage type: float32, bfloat16 or float16.
        device: ``None`` to follow the module; ``"cpu"`` keeps the rows in (pinned) host memory wherever the module is.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        *,
        queue_size: int = 30000,
        separate_confidence: bool = True,
        rare_class_fallback: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
    ) -> None:
        num_classes = require_integer("num_classes", num_classes, 1)
        feature_dim = require_integer("feature_dim", feature_dim, 1)
        require(dtype in DTYPES, "dtype", f"one of {DTYPES}", dtype)
        config = BRPGConfig(
            queue_size=queue_size, separate_confidence=separate_confidence, rare_class_fallback=rare_class_fallback
        )
        super().__init__(
            num_classes,
            feature_dim,
            num_groups=2 if separate_confidence else 1,
            capacity=queue_size if separate_confidence else 2 * queue_size,
            fallback_capacity=2 * queue_size if rare_class_fallback else 0,
            dtype=dtype,
            device=require_device("device", device),
        )
        self.queue_size, self.separate_confidence = config.queue_size, config.separate_confidence

    @torch.no_grad()
    def append(self, samples: Samples) -> None:
        """Append rows to their queues; the oldest rows leave full queues.

        Rows that are not finite, or longer than 1e15, are counted instead: no distance to them is finite.

        Args:
            samples: Any number of rows, of any classes and groups.

        Raises:
            ValueError: Shapes, classes or groups do not fit; nothing was changed.
        """
        require_instance("samples", samples, Samples, "Samples")
        samples.check(self.num_classes, self.feature_dim, FALLBACK if self.fallback_capacity else LOW)
        self.add(samples)

    @torch.no_grad()
    def add(self, samples: Samples, as_needed: bool = False) -> None:
        """:meth:`append` of samples that are known to fit, among which there may be rows that do not count.

        Args:
            samples: The rows.
            as_needed: Whether buffers that were cut take as much memory as the rows need, which the host waits to hear,
                instead of all they may ever need.
        """
        device, num_slots = self.features.device, self.num_classes * self.num_groups
        features, confidence = samples.features.to(device), samples.confidence.to(device)
        classes, groups = samples.classes.to(device).long(), samples.groups.to(device).long()
        counts, finite = groups != NONE, is_finite(features.to(self.dtype)) & confidence.isfinite()
        self.dropped += (counts & ~finite).sum()
        slot = classes * self.num_groups + groups if self.separate_confidence else classes
        slot = torch.where(counts & finite & (groups != FALLBACK), slot, num_slots)
        rare = torch.where(finite & (groups == FALLBACK), classes, self.num_classes)
        if as_needed:
            length = self.rows[:, : self.num_groups].flatten() + counts_by_index(slot, num_slots)
            fallback_length = self.kept_rows() + counts_by_index(rare, self.num_classes)
            self.reserve(*(max(1, int(rows.max())) for rows in (length, fallback_length)))
        else:
            self.reserve()
        self._append_rows(features, confidence, slot)
        if self.fallback_capacity:
            keep_most_confident(self.fallback_features, self.fallback_confidence, features, confidence, rare)

    def _append_rows(self, features: Tensor, confidence: Tensor, slot: Tensor) -> None:
        """Write rows into the ring of each ``slot`` (class x group), in order; those of the slot after the last not."""
        num_slots, length = self.num_classes * self.num_groups, self.features.shape[2]
        slot, order = slot.sort(stable=True)
        counts, rank = positions_in_group(slot, num_slots)
        regular, slot = slot < num_slots, slot.clamp(max=num_slots - 1)
        newest = regular & (rank >= counts[slot] - self.capacity)  # more rows than fit: only the newest stay
        cursor, rows = (b[:, : self.num_groups].flatten() for b in (self.cursor, self.rows))
        # Rows that do not count may have a place behind the memory of a shortened queue.
        place = slot * length + ((cursor[slot] + rank) % self.capacity).clamp(max=length - 1)
        rings = (self.features.view(-1, self.feature_dim), features), (self.confidence.view(-1), confidence)
        put_rows(rings, place, order, newest)
        shape = (self.num_classes, self.num_groups)
        self.cursor[:, : self.num_groups] = ((cursor + counts) % self.capacity).view(shape)
        self.rows[:, : self.num_groups] = (rows + counts).clamp(max=self.capacity).view(shape)

    @torch.no_grad()
    def take(self, kernels: ModuleType, maps: list[Tensor], found: Any, refused: Tensor) -> None:
        """:meth:`add` of pixels right from their maps, by :mod:`brpg_lib.kernels.fused`; ``refused ()`` are counted."""
        self.reserve()
        self.dropped += refused
        kernels.write_rings(maps, found, self.features, self.confidence, self.rows, self.cursor)

    @torch.no_grad()
    def fill_rare_classes(self, among: Tensor | None = None) -> None:
        """Fill the groups of classes with fewer than ten rows from the rows kept for rare classes.

        See :func:`~brpg_lib.collect.rare_classes.refills`. Does nothing without ``rare_class_fallback``.

        Args:
            among: ``(C,)`` bool, classes to look at; ``None`` for all.
        """
        if not self.fallback_capacity:
            return
        chosen = refills(self.fallback_confidence, self.rows, self.capacity, among)
        if chosen:
            self.reserve(max(int(rows.max()) for *_, rows in chosen if len(rows)), 0)
        places = torch.arange(self.features.shape[2], device=self.features.device)
        for classes, group, source, rows in chosen:
            valid, source = places < rows[:, None], source[:, : len(places)]
            features = self.fallback_features[classes[:, None], source]
            self.features[classes, group] = torch.where(valid[..., None], features, 0.0).to(self.dtype)
            confidence = self.fallback_confidence[classes[:, None], source]
            self.confidence[classes, group] = torch.where(valid, confidence, 0.0)
            self.rows[classes, group] = rows
            self.cursor[classes, group] = rows % self.capacity

    def group(self, class_index: int, group: int) -> tuple[Tensor, Tensor]:
        """Copies of one queue's rows, oldest first: features ``(n, D)`` in the storage type, confidence ``(n,)``.

        Raises:
            ValueError: There is no such class or group.
        """
        class_index = require_integer("class_index", class_index, 0, self.num_classes - 1)
        group = require_integer("group", group, 0, 1)
        if group >= self.num_groups:
            return self.features.new_zeros(0, self.feature_dim), self.confidence.new_zeros(0)
        count, cursor = int(self.rows[class_index, group]), int(self.cursor[class_index, group])
        order = torch.arange(count, device=self.features.device)
        if count == self.capacity:
            order = (order + cursor) % count
        return self.features[class_index, group][order], self.confidence[class_index, group][order]

    def reset(self) -> None:
        """Forget all rows, and what was refused."""
        self.release()
        self.dropped.zero_()

    def extra_repr(self) -> str:
        """Sizes and how many rows there are, for ``print(queue)``."""
        sizes = f"num_classes={self.num_classes}, feature_dim={self.feature_dim}, capacity={self.capacity}"
        if self.rows.is_meta:
            return sizes
        high, low = self.rows.sum(0).tolist()
        return f"{sizes}, rows={high} high + {low} low"

    def stored(self) -> tuple[Tensor, Tensor]:
        """All queues as one ragged batch: features ``(C * S, n, D)``, the first ``rows (C * S,)`` of each valid.

        ``n`` is the longest queue's length (at least 1); rows come in storage order.
        """
        longest = max(1, int(self.rows.max()))
        self.reserve(longest, 0)
        rows = rearrange(self.rows[:, : self.num_groups], "c s -> (c s)")
        return rearrange(self.features[:, :, :longest], "c s n d -> (c s) n d"), rows

    def stored_confidence(self) -> Tensor:
        """Confidence of the rows of :meth:`stored`: ``(C * S, n)`` float32."""
        return rearrange(self.confidence[:, :, : max(1, int(self.rows.max()))], "c s n -> (c s) n")

    def per_group(self, values: Tensor, fill: float | bool) -> Tensor:
        """Values ``(C * S, ...)`` of the stored groups as ``(C, 2, ...)``, with ``fill`` for a group not stored."""
        values = rearrange(values, "(c s) ... -> c s ...", s=self.num_groups)
        return values if self.num_groups == 2 else torch.cat((values, torch.full_like(values, fill)), dim=1)
