"""k-means of other libraries: each clusters all groups, most of them one after the other."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Centroids = list[Tensor]
"""``(K, D)`` of each group."""
Fit = Callable[[Tensor, list[int], bool], Centroids]
"""Clusters ``rows (G, n, D)`` into so many clusters per group, on a GPU or not."""


class Contender(NamedTuple):
    """A library that clusters.

    Attributes:
        name: What the tables call it.
        module: What it imports.
        package: What pip calls it.
        fit: How to use it.
        on_host: Whether it takes rows in host memory even where the device is a GPU.
    """

    name: str
    module: str
    package: str
    fit: Fit
    on_host: bool = True

    @property
    def installed(self) -> bool:
        """Whether it can be imported."""
        return find_spec(self.module) is not None


def one_by_one(fit: Callable[[Tensor, int, bool], Any]) -> Fit:
    """Group after group, as the published code does it: ``fit(rows (n, D), clusters, gpu) -> centroids (K, D)``."""
    return lambda rows, clusters, gpu: [
        torch.as_tensor(fit(group, count, gpu)) for group, count in zip(rows, clusters, strict=True)
    ]


def minibatch(group: Tensor, clusters: int, gpu: bool) -> np.ndarray:
    """What the published code runs."""
    from sklearn.cluster import MiniBatchKMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        centers: np.ndarray = MiniBatchKMeans(n_clusters=clusters, random_state=0).fit(group.numpy()).cluster_centers_
    return centers


def lloyd(group: Tensor, clusters: int, gpu: bool) -> np.ndarray:
    """Full k-means, one seeding."""
    from sklearn.cluster import KMeans

    centers: np.ndarray = KMeans(clusters, n_init=1, random_state=0).fit(group.numpy()).cluster_centers_
    return centers


def faiss_all(group: Tensor, clusters: int, gpu: bool) -> np.ndarray:
    """25 iterations over all rows."""
    return _faiss(group, clusters, gpu, max_points_per_centroid=len(group))


def faiss_default(group: Tensor, clusters: int, gpu: bool) -> np.ndarray:
    """25 iterations over a sample of 256 rows per cluster, which is the default."""
    return _faiss(group, clusters, gpu)


def _faiss(group: Tensor, clusters: int, gpu: bool, **options: Any) -> np.ndarray:
    import faiss

    gpu = gpu and getattr(faiss, "get_num_gpus", int)() > 0  # its CPU wheel has none
    kmeans = faiss.Kmeans(group.shape[1], clusters, niter=25, seed=0, gpu=gpu, **options)
    kmeans.train(group.numpy())
    centers: np.ndarray = kmeans.centroids
    return centers


def flash(rows: Tensor, clusters: list[int], gpu: bool) -> Centroids:
    """All groups with equally many clusters at once on a GPU; on the CPU, where it has no kernels, one by one."""
    from flash_kmeans import FlashKMeans

    found: Centroids = []
    while len(found) < len(clusters):
        start, count = len(found), clusters[len(found)]
        stop = start + (clusters[start:].count(count) if gpu else 1)
        model = FlashKMeans(rows.shape[2], count, use_triton=gpu, device=rows.device)
        model.train(rows[start:stop])
        found.extend(model.centroids_b)
    return found


def fast(group: Tensor, clusters: int, gpu: bool) -> np.ndarray:
    """25 iterations from random rows; takes rows in host memory."""
    from fastkmeans import FastKMeans

    model = FastKMeans(group.shape[1], clusters, gpu=gpu)
    model.train(group.numpy())
    centers: np.ndarray = model.centroids
    return centers


def fast_pytorch(group: Tensor, clusters: int, gpu: bool) -> Tensor:
    """At most 100 iterations from random rows."""
    from fast_pytorch_kmeans import KMeans

    model = KMeans(clusters)
    model.fit(group)
    centers: Tensor = model.centroids
    return centers


CONTENDERS = (
    Contender("scikit-learn MiniBatchKMeans (published code)", "sklearn", "scikit-learn", one_by_one(minibatch)),
    Contender("scikit-learn KMeans, n_init=1", "sklearn", "scikit-learn", one_by_one(lloyd)),
    Contender("faiss, all rows", "faiss", "faiss-cpu", one_by_one(faiss_all)),
    Contender("faiss, its default sample", "faiss", "faiss-cpu", one_by_one(faiss_default)),
    Contender("flash-kmeans", "flash_kmeans", "flash-kmeans", flash, on_host=False),
    Contender("fastkmeans", "fastkmeans", "fastkmeans", one_by_one(fast)),
    Contender(
        "fast-pytorch-kmeans",
        "fast_pytorch_kmeans",
        "fast-pytorch-kmeans",
        one_by_one(fast_pytorch),
        on_host=False,
    ),
)
