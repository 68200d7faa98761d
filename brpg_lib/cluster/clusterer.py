"""Online clustering: prototypes from the feature queues (the paper's confidence-based prototype generation, CPG)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from brpg_lib.collect.queue import FeatureQueue
from brpg_lib.config import MAX_PROTOTYPES, BRPGConfig
from brpg_lib.kernels.kmeans import kmeans, prepare
from brpg_lib.kernels.random import fold
from brpg_lib.keywords import with_checked_keywords
from brpg_lib.ranks.collectives import ProcessGroup, all_reduce_sum, share_of
from brpg_lib.state import StateModule
from brpg_lib.validation import (
    MAX_COUNT,
    is_integer,
    require,
    require_instance,
    require_integer,
    require_tensor,
)


class Prototypes(NamedTuple):
    """Prototypes of all classes and groups.

    Attributes:
        vectors: ``(C, 2, K, D)`` float32, zero where there is no prototype.
        mask: ``(C, 2, K)`` bool, true where there is one.
        inertia: ``(C, 2)`` float32 sum of squared distances of the queue's rows to their cluster's mean.
    """

    vectors: Tensor
    mask: Tensor
    inertia: Tensor


@with_checked_keywords
class OnlineClusterer(StateModule):
    """Clusters the queues of all classes and groups at once, with k-means on the raw features.

    A queue with fewer distinct rows than prototypes gives as many as it can; an empty one gives none. The ranks of a
    distributed training share the queues out and exchange the prototypes, so that all of them have to call it, with
    equal queues. The prototypes of a class do not depend on the number of ranks, but for rounding.

    >>> from brpg_lib import Samples
    >>> queue = FeatureQueue(num_classes=1, feature_dim=2)
    >>> features = torch.tensor([[0.0, 1.0], [0.0, 3.0], [9.0, 9.0]])
    >>> zeros = torch.zeros(3, dtype=torch.long)
    >>> queue.append(Samples(features, zeros, zeros, torch.ones(3), torch.tensor(0)))
    >>> found = OnlineClusterer(num_classes=1)(queue, torch.tensor([[2, 0]]))
    >>> sorted(found.vectors[0, 0].tolist())
    [[0.0, 2.0], [9.0, 9.0]]

    Args:
        num_classes: Number of classes C.
        centroid: ``"mean"`` of a cluster's rows, or the mean weighted by their ``"confidence"``.
        restarts: Seedings that compete for the smallest inertia.
        max_iterations: Bound of the Lloyd iterations of each stage.
        backend: What runs the passes over the rows: ``"triton"``, ``"numba"``, ``"torch"``, or ``None`` for the fastest
            that is installed and fits the queue. :attr:`used_backend` tells which one it was.
        seed: Seed of the k-means++ draw; the same seed, queue and backend give the same prototypes.
        process_group: Ranks that share the work; ``None`` for the default group.

    Raises:
        ValueError: A hyper-parameter is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        centroid: str = "mean",
        restarts: int = 8,
        max_iterations: int = 100,
        backend: str | None = None,
        seed: int = 0,
        process_group: ProcessGroup = None,
    ) -> None:
        super().__init__()
        num_classes = require_integer("num_classes", num_classes, 1)
        seed = require_integer("seed", seed, 0, MAX_COUNT)
        self.num_classes = num_classes
        self.config = BRPGConfig(centroid=centroid, restarts=restarts, max_iterations=max_iterations, backend=backend)
        self.seed = seed
        self.process_group = process_group
        self.used_backend: str | None = None

    def prepare(self, queue: FeatureQueue, max_prototypes: int) -> None:
        """Try, and compile, what will cluster such a queue: early, where a failure costs nothing.

        Args:
            queue: Empty or not.
            max_prototypes: The most that a class and group will want.
        """
        if self.config.backend is None:
            prepare(queue.features[:1, 0], max_prototypes)

    @torch.no_grad()
    def forward(self, queue: FeatureQueue, num_prototypes: Tensor) -> Prototypes:
        """Cluster.

        Args:
            queue: Feature queues of C classes.
            num_prototypes: ``(C, 2)`` integers, prototypes wanted per class and group; 0 leaves a group out.

        Returns:
            Prototypes with ``K`` the largest number wanted, on the device of the queue's counters.

        Raises:
            ValueError: The queue or ``num_prototypes`` does not fit.
        """
        require_instance(
            "queue",
            queue,
            FeatureQueue,
            "a FeatureQueue",
        )
        require(queue.num_classes == self.num_classes, "queue", f"{self.num_classes} classes", queue.num_classes)
        fits = (
            isinstance(num_prototypes, Tensor)
            and num_prototypes.shape == (self.num_classes, 2)
            and is_integer(num_prototypes)
            and not num_prototypes.is_meta
        )
        require_tensor(fits, "num_prototypes", f"integers ({self.num_classes}, 2)", num_prototypes)
        lowest, highest = (int(value) for value in num_prototypes.aminmax())
        fits = lowest >= 0 and 1 <= highest <= MAX_PROTOTYPES
        expected = f"values in 0..{MAX_PROTOTYPES}, one of them >= 1"
        require(fits, "num_prototypes", expected, f"{lowest}..{highest}")
        features, rows = queue.stored()
        wanted = num_prototypes[:, : queue.num_groups].reshape(-1).long().to(features.device)
        share = share_of((rows * wanted).tolist(), self.process_group)
        dim = features.shape[2]
        # Centroid, number of rows and inertia; each rank fills in its share, and the sum brings all together.
        found = torch.zeros(len(rows), highest, dim + 2, dtype=torch.float32, device=features.device)
        if wanted[share].any():
            self._cluster(queue, share, wanted, found[share])
        all_reduce_sum(found, self.process_group)
        vectors, counts, inertia = found.split((dim, 1, 1), dim=2)
        return Prototypes(
            queue.per_group(vectors, fill=0.0),
            queue.per_group(counts[..., 0] > 0, fill=False),
            queue.per_group(inertia[:, 0, 0], fill=0.0),
        )

    def _cluster(self, queue: FeatureQueue, share: slice, wanted: Tensor, found: Tensor) -> None:
        """Write centroid, number of rows and inertia ``(g, K, D + 2)`` of a share of the stored groups to ``found``."""
        features, rows = queue.stored()
        device = features.device
        weights = queue.stored_confidence()[share] if self.config.centroid == "confidence" else None
        with torch.autocast(device.type, enabled=False):
            clustering = kmeans(
                features[share],
                rows[share],
                wanted[share],
                fold(torch.arange(len(rows), device=device), self.seed)[share],
                weights=weights,
                restarts=self.config.restarts,
                max_iterations=self.config.max_iterations,
                backend=self.config.backend,
            )
        self.used_backend = clustering.backend
        most, dim = clustering.counts.shape[1], features.shape[2]
        found[:, :most, :dim] = clustering.centroids
        found[:, :most, dim] = clustering.counts
        found[:, 0, dim + 1] = clustering.inertia
