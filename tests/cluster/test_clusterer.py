"""Online clustering against the best of several plain k-means runs."""

from __future__ import annotations

import pytest
import reference
import torch
from builders import clusters, filled_queue, samples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from brpg_lib import FeatureQueue, OnlineClusterer, Prototypes
from brpg_lib.kernels.blocks import BLOCK_BYTES


def cluster(queue: FeatureQueue, wanted: int | Tensor, **options) -> Prototypes:
    if not isinstance(wanted, Tensor):
        wanted = torch.full((queue.num_classes, 2), wanted)
    return OnlineClusterer(queue.num_classes, **options)(queue, wanted)


def centroids(found: Prototypes, class_index: int, group: int) -> Tensor:
    return found.vectors[class_index, group][found.mask[class_index, group]]


def inertia(rows: Tensor, vectors: Tensor) -> float:
    return reference.kmeans_inertia(rows.numpy(), vectors.numpy())


def assert_good(
    rows: Tensor, found: Prototypes, class_index: int, group: int, wanted: int, slack: float = 1.02
) -> None:
    """The prototypes are the means of the rows nearest to them, and as good as the best reference run."""
    vectors = centroids(found, class_index, group)
    if not len(rows):
        assert not len(vectors)
        return
    best, best_inertia = reference.best_kmeans(rows.numpy(), wanted, restarts=10)
    assert len(vectors) == len(best)
    scale = float((rows - rows.mean(0)).square().sum())
    assert inertia(rows, vectors) <= slack * best_inertia + 1e-6 * scale
    assert found.inertia[class_index, group].item() == pytest.approx(inertia(rows, vectors), rel=1e-3, abs=1e-5 * scale)
    nearest, _ = reference.nearest_centroid(rows.double().numpy(), vectors.double().numpy())
    means = torch.stack([rows[torch.from_numpy(nearest == k)].mean(0) for k in range(len(vectors))])
    assert (means - vectors).square().sum() <= 1e-3 * scale / len(rows) + 1e-12


@given(
    counts=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=4),
    dim=st.integers(1, 6),
    wanted=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_as_good_as_the_reference(counts, dim, wanted, seed):
    rows = {
        (c, g): clusters(n, wanted, dim, seed + 10 * c + g) for c, pair in enumerate(counts) for g, n in enumerate(pair)
    }
    found = cluster(filled_queue(rows, len(counts)), wanted, restarts=20)
    assert found.vectors.shape == (len(counts), 2, wanted, dim)
    assert (found.vectors[~found.mask] == 0).all()
    for (c, g), values in rows.items():
        assert_good(values, found, c, g, min(wanted, max(1, len(values))))


@pytest.mark.parametrize("seed", [0, 1])
def test_more_rows_than_the_coarse_stage_holds(seed: int) -> None:
    """Small queues beside large ones get as good a clustering."""
    sizes = {(0, 0): 9000, (0, 1): 4097, (1, 0): 2049, (1, 1): 300, (2, 0): 40, (2, 1): 7}
    rows = {key: clusters(n, 4, 8, seed + n, spread=0.4) for key, n in sizes.items()}
    found = cluster(filled_queue(rows, 3), 4)
    for (c, g), values in rows.items():
        assert_good(values, found, c, g, 4)


@pytest.mark.parametrize("seed", range(6))
def test_small_queues_beside_a_large_one(seed: int) -> None:
    rows = {(0, 0): clusters(6000, 3, 4, seed)}
    rows |= {(c, g): clusters(12 + 9 * c, 3, 4, 10 * seed + c + 5 * g) for c in (1, 2, 3, 4) for g in (0, 1)}
    found = cluster(filled_queue(rows, 5), 3)
    for (c, g), values in rows.items():
        assert_good(values, found, c, g, 3, slack=1.05)  # few overlapping rows have many local optima


@pytest.mark.parametrize("num_rows", [500, 5000])
def test_far_from_the_origin(num_rows: int) -> None:
    rows = {(0, 0): clusters(num_rows, 3, 16, 0, spread=0.1, offset=1000.0), (0, 1): clusters(num_rows, 3, 16, 1)}
    found = cluster(filled_queue(rows, 1), 3)
    for g in (0, 1):
        assert_good(rows[0, g], found, 0, g, 3)


def test_wanted_numbers_differ() -> None:
    rows = {(c, g): clusters(50, 3, 4, c + 7 * g) for c in range(3) for g in (0, 1)}
    wanted = torch.tensor([[1, 3], [0, 2], [4, 0]])
    found = cluster(filled_queue(rows, 3), wanted)
    assert torch.equal(found.mask.sum(2), wanted)
    for (c, g), values in rows.items():
        if wanted[c, g]:
            assert_good(values, found, c, g, int(wanted[c, g]))


def test_one_prototype_is_the_mean() -> None:
    rows = clusters(100, 3, 4, 0)
    found = cluster(filled_queue({(0, 0): rows}, 1), 1)
    assert_close(found.vectors[0, 0, 0], rows.mean(0))
    assert found.mask.tolist() == [[[True], [False]]]


@pytest.mark.parametrize("copies", [1, 40])
def test_no_more_prototypes_than_distinct_rows(copies: int) -> None:
    distinct = torch.tensor([[0.0, 1.0], [5.0, 5.0]])
    rows = {(0, 0): distinct.repeat(copies, 1), (0, 1): torch.full((copies, 2), 3.5), (1, 0): torch.zeros(copies, 2)}
    found = cluster(filled_queue(rows, 2), 4)
    assert found.mask.sum(2).tolist() == [[2, 1], [1, 0]]
    assert_close(torch.tensor(sorted(centroids(found, 0, 0).tolist())), distinct)
    assert_close(centroids(found, 0, 1), torch.full((1, 2), 3.5))
    assert_close(centroids(found, 1, 0), torch.zeros(1, 2))
    assert found.inertia.abs().max() < 1e-4


def test_an_empty_queue() -> None:
    found = cluster(FeatureQueue(3, 4, queue_size=5), 2)
    assert not found.mask.any()
    assert found.vectors.eq(0).all()
    assert found.inertia.eq(0).all()


def test_a_ring_that_has_wrapped() -> None:
    queue = FeatureQueue(1, 4, queue_size=30)
    rows = clusters(100, 3, 4, 0)
    for part in rows.split(7):
        queue.append(samples(part, 0, 0))
    assert_good(rows[-30:], cluster(queue, 3), 0, 0, 3)


def test_centroids_weighted_by_confidence() -> None:
    rows = {(0, 0): clusters(80, 3, 4, 0), (0, 1): clusters(80, 3, 4, 1)}
    queue = filled_queue(rows, 1)
    means, weighted = cluster(queue, 3), cluster(queue, 3, centroid="confidence")
    assert torch.equal(means.mask, weighted.mask)
    assert_close(means.inertia, weighted.inertia)
    for g in (0, 1):
        vectors, confidence = queue.group(0, g)
        nearest, _ = reference.nearest_centroid(vectors.double().numpy(), means.vectors[0, g].double().numpy())
        for k in range(3):
            here = torch.from_numpy(nearest == k)
            expected = reference.confidence_centroid(vectors[here].numpy(), confidence[here].numpy())
            assert_close(weighted.vectors[0, g, k], torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-5)
            assert not torch.equal(weighted.vectors[0, g, k], means.vectors[0, g, k])


def test_confidence_zero_everywhere_gives_means() -> None:
    rows = clusters(30, 2, 3, 0)
    queue = FeatureQueue(1, 3, queue_size=30)
    queue.append(samples(rows, 0, 0, 0.0))
    assert_close(cluster(queue, 2, centroid="confidence").vectors, cluster(queue, 2).vectors)


def test_pooled() -> None:
    queue = FeatureQueue(2, 4, queue_size=50, separate_confidence=False)
    rows = clusters(90, 4, 4, 0)
    queue.append(samples(rows, 1, torch.arange(90) % 2))
    found = cluster(queue, torch.tensor([[4, 0], [4, 0]]))
    assert found.mask.sum(2).tolist() == [[0, 0], [4, 0]]
    assert_good(rows, found, 1, 0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows(dtype: torch.dtype) -> None:
    rows = {(c, g): clusters(3000 if c else 50, 3, 6, c + 5 * g) for c in range(2) for g in (0, 1)}
    queue = filled_queue(rows, 2, dtype=dtype)
    found = cluster(queue, 3)
    assert found.vectors.dtype == torch.float32
    for (c, g), values in rows.items():
        assert_good(values.to(dtype).float(), found, c, g, 3)


def test_half_precision_rows_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large queues are read block by block; small blocks must give the same clustering."""
    queue = filled_queue({(0, 0): clusters(500, 3, 6, 0)}, 1, dtype=torch.bfloat16)
    whole = cluster(queue, 3)
    monkeypatch.setitem(BLOCK_BYTES, "cpu", 4 * 2 * 6 * 37)
    assert_close(cluster(queue, 3).vectors, whole.vectors)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_the_backend_is_a_choice_and_reported(backend: str) -> None:
    queue = filled_queue({(c, g): clusters(300, 3, 6, c + 5 * g) for c in range(2) for g in (0, 1)}, 2)
    automatic, chosen = OnlineClusterer(2), OnlineClusterer(2, backend=backend)
    wanted = torch.full((2, 2), 3)
    found, same = automatic(queue, wanted), chosen(queue, wanted)
    assert (automatic.used_backend, chosen.used_backend) == ("numba", backend)
    assert_close(found.inertia, same.inertia, rtol=1e-4, atol=0)


def test_seed_decides() -> None:
    torch.manual_seed(0)
    queue = filled_queue({(0, 0): torch.rand(200, 4), (0, 1): torch.rand(3000, 4)}, 1)
    first = cluster(queue, 5, restarts=1, seed=3)
    before = torch.get_rng_state()
    again = cluster(queue, 5, restarts=1, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.vectors, again.vectors)
    other = [cluster(queue, 5, restarts=1, seed=s).vectors for s in range(4, 8)]
    assert any(not torch.equal(first.vectors, vectors) for vectors in other)


def test_restarts_do_not_hurt() -> None:
    rows = clusters(400, 8, 2, 5)
    queue = filled_queue({(0, 0): rows}, 1)
    one, many = (cluster(queue, 8, restarts=r).inertia[0, 0] for r in (1, 8))
    assert many <= one * 1.0001


def test_autocast_does_not_matter() -> None:
    queue = filled_queue({(0, 0): clusters(300, 3, 8, 0, offset=20.0)}, 1)
    plain = cluster(queue, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cluster(queue, 3).vectors, plain.vectors)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_extreme_magnitudes(size: float) -> None:
    rows = clusters(100, 3, 4, 0)
    found = cluster(filled_queue({(0, 0): rows * size, (0, 1): rows}, 1), 3)
    assert found.vectors.isfinite().all()
    assert found.inertia.isfinite().all()
    assert_good(rows, found, 0, 1, 3)
    assert inertia(rows, centroids(found, 0, 0) / size) <= 1.02 * reference.best_kmeans(rows.numpy(), 3)[1]


def test_one_outlier_does_not_spoil_the_others() -> None:
    rows = clusters(200, 2, 4, 0)
    found = cluster(filled_queue({(0, 0): torch.cat((rows, torch.full((1, 4), 1e8)))}, 1), 3)
    assert found.vectors.isfinite().all()
    assert found.mask.sum() == 3 or found.mask.sum() == 2


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_cuda_clusters_as_well_as_the_cpu(backend: str, dtype: torch.dtype) -> None:
    rows = {(c, g): clusters(20_000 if c else 50, 3, 48, c + 5 * g, spread=0.5) for c in range(3) for g in (0, 1)}
    here, there = filled_queue(rows, 3, dtype=dtype), filled_queue(rows, 3, dtype=dtype).cuda()
    module = OnlineClusterer(3, backend=backend)
    expected, found = (
        OnlineClusterer(3, backend="torch")(here, torch.full((3, 2), 3)),
        module(there, torch.full((3, 2), 3)),
    )
    assert module.used_backend == backend
    assert_close(found.inertia.cpu(), expected.inertia, rtol=1e-3, atol=0)


def test_what_is_refused() -> None:
    queue = FeatureQueue(2, 3, queue_size=4)
    with pytest.raises((TypeError, ValueError), match="queue: expected 3 classes, found 2"):
        OnlineClusterer(3)(queue, torch.ones(3, 2, dtype=torch.int64))
    for wrong in (torch.ones(2, 2), torch.ones(3, 2).long(), torch.zeros(2, 2).long(), -torch.ones(2, 2).long(), [[1]]):
        with pytest.raises((TypeError, ValueError), match="num_prototypes: expected"):
            OnlineClusterer(2)(queue, wrong)
    for option in ({"restarts": 0}, {"max_iterations": 0}, {"centroid": "median"}, {"backend": "cuda"}):
        with pytest.raises((TypeError, ValueError), match=next(iter(option))):
            OnlineClusterer(2, **option)
