"""Batched, ragged k-means."""

from __future__ import annotations

import pytest
import reference
import torch
from builders import clusters
from hypothesis import given
from hypothesis import strategies as st
from packages import needs_triton
from torch.testing import assert_close

from brpg_lib.kernels.kmeans import Clustering, kmeans
from brpg_lib.kernels.kmeans.descent import Descent, Rows, descend
from brpg_lib.kernels.lloyd import load


def ragged(parts: list[torch.Tensor], length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    counts = torch.tensor([len(part) for part in parts])
    rows = torch.zeros(len(parts), length or max(1, int(counts.max())), parts[0].shape[1])
    for group, part in zip(rows, parts, strict=True):
        group[: len(part)] = part
    return rows, counts


def cluster(parts: list[torch.Tensor], wanted: list[int], **options) -> Clustering:
    rows, counts = ragged(parts, options.pop("length", None))
    return kmeans(rows, counts, torch.tensor(wanted), 7 + torch.arange(len(rows)), **options)


@given(sizes=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4)), min_size=1, max_size=5), dim=st.integers(1, 5),
       seed=st.integers(0, 99), padding=st.integers(0, 30))  # fmt: skip
def test_counts_centroids_and_inertia_agree(sizes, dim, seed, padding):
    parts = [clusters(n, 3, dim, seed + i) for i, (n, _) in enumerate(sizes)]
    wanted = [max(1, k) if i == 0 else k for i, (_, k) in enumerate(sizes)]
    found = cluster(parts, wanted, length=max(1, *(n for n, _ in sizes)) + padding)
    assert found.centroids.shape == (len(parts), max(wanted), dim)
    for g, rows in enumerate(parts):
        exists = found.counts[g] > 0
        assert int(exists.sum()) == min(wanted[g], len(rows)), "random rows are distinct"
        assert int(found.counts[g].sum()) == (len(rows) if wanted[g] else 0)
        assert (found.centroids[g][~exists] == 0).all()
        if not exists.any():
            assert found.inertia[g] == 0
            continue
        centroids = found.centroids[g][exists]
        inertia = reference.kmeans_inertia(rows.numpy(), centroids.numpy())
        assert found.inertia[g].item() == pytest.approx(inertia, rel=1e-3, abs=1e-3)
        nearest, _ = reference.nearest_centroid(rows.double().numpy(), centroids.double().numpy())
        for k, centroid in enumerate(centroids):
            mine = torch.from_numpy(nearest == k)
            assert int(mine.sum()) == int(found.counts[g][exists][k])
            assert_close(rows[mine].mean(0), centroid, atol=1e-4, rtol=1e-4)


def test_groups_do_not_disturb_each_other() -> None:
    parts = [clusters(n, 3, 4, n) for n in (30, 5, 200)]
    together = cluster(parts, [3, 2, 3], length=200)
    for g, part in enumerate(parts):
        others = [p if i == g else p * 100 - 7 for i, p in enumerate(parts)]
        found = cluster(others, [3, 2, 3], length=200)
        assert_close(found.inertia[g], together.inertia[g], rtol=1e-4, atol=1e-4)
        assert len(part) == int(found.counts[g].sum())


def test_separated_clusters_are_found() -> None:
    random = torch.Generator().manual_seed(0)
    middle = 100 * torch.randn(6, 8, generator=random)
    rows = (middle[:, None] + torch.randn(6, 500, 8, generator=random)).flatten(0, 1)[torch.randperm(3000)]
    found = cluster([rows], [6])
    assert found.counts[0].tolist() == [500] * 6
    distance = torch.cdist(found.centroids[0], middle)
    assert distance.amin(0).max() < 1


def test_weights_move_centroids_only() -> None:
    rows = clusters(60, 2, 3, 0)
    plain = cluster([rows], [2])
    weights = torch.rand(1, 60, generator=torch.Generator().manual_seed(0))
    weighted = cluster([rows], [2], weights=weights)
    assert torch.equal(plain.counts, weighted.counts)
    assert_close(plain.inertia, weighted.inertia)
    assert_close(cluster([rows], [2], weights=torch.full((1, 60), 0.3)).centroids, plain.centroids)
    assert not torch.equal(plain.centroids, weighted.centroids)


def test_one_iteration_is_a_result_too() -> None:
    rows = clusters(3000, 5, 4, 0)
    found = cluster([rows], [5], max_iterations=1, restarts=1)
    assert found.iterations <= 1
    assert int(found.counts.sum()) == 3000
    assert cluster([rows], [5]).inertia <= found.inertia


@pytest.mark.parametrize("longest", [400, 9000])
def test_a_group_does_not_depend_on_the_groups_beside_it(longest: int) -> None:
    """Nor on how many clusters these want: ranks share the groups out."""
    rows, counts = ragged([clusters(longest, 3, 6, 0), clusters(300, 2, 6, 1), clusters(200, 9, 6, 2)])
    wanted, keys = torch.tensor([3, 2, 9]), torch.tensor([5, 6, 7])
    together = kmeans(rows, counts, wanted, keys)
    for part in (slice(0, 1), slice(1, 2), slice(0, 2), slice(1, 3)):
        alone = kmeans(rows[part], counts[part], wanted[part], keys[part])
        most = alone.counts.shape[1]
        assert torch.equal(alone.counts, together.counts[part, :most])
        assert_close(alone.centroids, together.centroids[part, :most], atol=1e-5, rtol=1e-5)
        assert_close(alone.inertia, together.inertia[part], atol=0, rtol=1e-5)


def test_an_empty_cluster_is_given_another_row() -> None:
    """Two far pairs and many equal rows: k-means++ and relocation must leave no center unused."""
    rows = torch.cat((torch.zeros(50, 2), torch.tensor([[9.0, 0], [9, 1], [0, 9], [1, 9]])))
    for seed in range(5):
        found = kmeans(rows[None], torch.tensor([54]), torch.tensor([5]), torch.tensor([seed]), restarts=1)
        assert (found.counts > 0).all()
        assert found.inertia.item() < 1e-3


def test_deterministic_algorithms() -> None:
    parts = [clusters(3000, 3, 4, 0), clusters(10, 3, 4, 1)]
    plain = cluster(parts, [3, 3])
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(cluster(parts, [3, 3]).centroids, plain.centroids)
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_empty_center_moves_to_rows_far_from_the_others() -> None:
    """Three groups of rows; the third center starts where no row is nearest to it."""
    middle = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rows = torch.cat([m + 0.1 * clusters(40, 1, 2, i) for i, m in enumerate(middle)])[None]
    start = torch.tensor([[[[0.0, 0.0], [10.0, 0.0], [500.0, 500.0]]]])
    allowed, active = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)
    every = Rows(rows, torch.tensor([120]), torch.zeros(1, 2), None)
    found = descend(load("torch"), every, Descent.start(start, active), allowed, 50, torch.tensor([[1e-7]]))
    assert found.counts[0, 0].tolist() == [40, 40, 40]
    assert torch.cdist(found.centers[0, 0], middle).amin(1).max() < 1


@pytest.mark.parametrize("num_rows", [200, 20_000])
def test_backends_agree(num_rows: int) -> None:
    parts = [clusters(num_rows, 3, 8, 0, spread=0.3), clusters(num_rows // 2, 2, 8, 1, spread=0.3), torch.zeros(0, 8)]
    one, two = (cluster(parts, [3, 2, 3], backend=backend) for backend in ("numba", "torch"))
    assert (one.backend, two.backend) == ("numba", "torch")
    assert torch.equal(one.counts.sort(1).values, two.counts.sort(1).values)
    assert_close(one.inertia, two.inertia, rtol=1e-4, atol=0)
    assert_close(one.centroids.sum(1), two.centroids.sum(1), rtol=1e-3, atol=1e-3)


@needs_triton
def test_triton_clusters_as_well(device: torch.device) -> None:
    if torch.cuda.is_available() and device.type == "cpu":
        pytest.skip("Triton's interpreter is used only where there is no GPU")
    rows, counts = ragged([clusters(300, 3, 5, 0), clusters(40, 2, 5, 1)])
    arguments = (counts.to(device), torch.tensor([3, 2], device=device), torch.tensor([7, 8], device=device))
    one, two = (kmeans(rows.to(device), *arguments, backend=backend) for backend in ("triton", "torch"))
    assert_close(one.inertia, two.inertia, rtol=1e-4, atol=0)
    assert_close(one.centroids.sum(1), two.centroids.sum(1), rtol=1e-4, atol=1e-3)


def test_large_groups_are_as_good_as_scikit_learn() -> None:
    from sklearn.cluster import MiniBatchKMeans

    parts = [clusters(20_000, 4, 16, seed, spread=0.5) for seed in range(4)]
    found = cluster(parts, [2, 3, 2, 3])
    for group, (rows, wanted) in enumerate(zip(parts, [2, 3, 2, 3], strict=True)):
        official = MiniBatchKMeans(n_clusters=wanted, random_state=0).fit(rows.numpy())
        assert found.inertia[group] <= official.inertia_ * 1.0001
