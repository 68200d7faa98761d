"""The adaptive split against plain loops."""

from __future__ import annotations

import pytest
import reference
import torch
from builders import clusters, filled_queue, samples
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from brpg_lib import AdaptiveSplitter, FeatureQueue

KINDS = ("cosine", "l2", "l2_normalized")


@given(
    counts=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=8),
    dim=st.integers(2, 5),
    kind=st.sampled_from(KINDS),
    fraction=st.sampled_from([0.0, 0.05, 0.25, 0.3, 0.5, 1.0]),
    increment=st.integers(1, 3),
    base=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    offset=st.sampled_from([0.0, 5.0]),
    seed=st.integers(0, 99),
)
def test_equals_the_loops(counts, dim, kind, fraction, increment, base, offset, seed):
    rows = {
        (c, g): clusters(n, 2, dim, seed + 10 * c + g, spread=1.0 + c, offset=offset)
        for c, pair in enumerate(counts)
        for g, n in enumerate(pair)
    }
    queue = filled_queue(rows, len(counts), queue_size=12)
    splitter = AdaptiveSplitter(
        len(counts), num_prototypes=base, split_fraction=fraction, split_increment=increment, dispersion=kind
    )
    found = splitter(queue)
    for g in (0, 1):
        dispersions = [reference.dispersion(rows[c, g], kind) for c in range(len(counts))]
        assert_close(found.dispersion[:, g].double(), torch.tensor(dispersions).double(), atol=1e-5, rtol=1e-5,
                     equal_nan=True)  # fmt: skip
        wanted = reference.split_counts(dispersions, kind, base[g], fraction, increment)
        assert found.num_prototypes[:, g].tolist() == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_ties_are_all_split(kind: str) -> None:
    rows = clusters(9, 2, 4, 0)
    queue = filled_queue({(c, 0): rows if c < 3 else rows[:1] for c in range(5)}, 5)
    counts = AdaptiveSplitter(5, split_fraction=0.2, dispersion=kind)(queue).num_prototypes
    assert counts.tolist() == [[3, 2]] * 3 + [[2, 2]] * 2


def test_rounding_is_bankers() -> None:
    queue = filled_queue({(c, 0): clusters(9, 2, 4, c, spread=1 + c) for c in range(10)}, 10)
    for fraction, split in ((0.05, 1), (0.25, 2), (0.35, 4), (0.04, 1), (1.0, 10)):
        counts = AdaptiveSplitter(10, split_fraction=fraction)(queue).num_prototypes
        assert int((counts[:, 0] == 3).sum()) == split


def test_an_empty_queue() -> None:
    split = AdaptiveSplitter(4)(FeatureQueue(4, 3, queue_size=5))
    assert split.num_prototypes.eq(2).all()
    assert split.dispersion.isnan().all()


def test_pooled() -> None:
    queue = FeatureQueue(3, 4, queue_size=6, separate_confidence=False)
    rows = clusters(9, 2, 4, 0)
    queue.append(samples(rows, 1, torch.arange(9) % 2))
    split = AdaptiveSplitter(3, separate_confidence=False, num_prototypes=(2, 3))(queue)
    assert split.num_prototypes.tolist() == [[5, 0]] * 3
    assert split.dispersion[1, 0].item() == pytest.approx(reference.dispersion(rows), abs=1e-5)
    assert split.dispersion[:, 1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_rows(dtype: torch.dtype, kind: str) -> None:
    rows = {(c, g): clusters(20, 2, 4, c + 10 * g, spread=1 + c) for c in range(3) for g in (0, 1)}
    queue = filled_queue(rows, 3, dtype=dtype)
    found = AdaptiveSplitter(3, dispersion=kind)(queue).dispersion
    for (c, g), values in rows.items():
        assert found[c, g].item() == pytest.approx(reference.dispersion(values.to(dtype), kind), rel=1e-4)


def test_rows_of_a_ring_that_has_wrapped() -> None:
    queue = FeatureQueue(1, 4, queue_size=7)
    rows = clusters(17, 3, 4, 1)
    for part in rows.split(4):
        queue.append(samples(part, 0, 0))
    assert AdaptiveSplitter(1)(queue).dispersion[0, 0].item() == pytest.approx(
        reference.dispersion(rows[-7:]), abs=1e-5
    )


def test_far_from_the_origin() -> None:
    rows = {(c, 0): clusters(50, 3, 8, c, spread=0.1 * (1 + c), offset=1000.0) for c in range(3)}
    split = AdaptiveSplitter(3, dispersion="l2")(filled_queue(rows, 3))
    for (c, g), values in rows.items():
        assert split.dispersion[c, g].item() == pytest.approx(reference.dispersion(values, "l2"), rel=1e-2)
    wanted = reference.split_counts([reference.dispersion(rows[c, 0], "l2") for c in range(3)], "l2", 2, 0.05)
    assert split.num_prototypes[:, 0].tolist() == wanted


def test_zero_features_are_no_error() -> None:
    queue = filled_queue({(0, 0): torch.zeros(5, 3), (1, 0): clusters(5, 1, 3, 0)}, 2)
    for kind in KINDS:
        split = AdaptiveSplitter(2, dispersion=kind)(queue)
        assert split.dispersion[:, 0].isfinite().all()


def test_a_queue_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="queue: expected 3 classes, found 4"):
        AdaptiveSplitter(3)(FeatureQueue(4, 2, queue_size=2))
    with pytest.raises(ValueError, match="queue: expected separate_confidence=True, found False"):
        AdaptiveSplitter(3)(FeatureQueue(3, 2, queue_size=2, separate_confidence=False))
