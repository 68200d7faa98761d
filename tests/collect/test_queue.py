"""Queues against plain lists."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
import reference
import torch
from builders import same, samples, state
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from brpg_lib import FeatureQueue, Samples

pytestmark = pytest.mark.usefixtures("everywhere")

C, D = 3, 4


def batch_of(counts: Sequence[int], seed: int, last_group: int = 1) -> Samples:
    """Random rows; counts[i] of them belong to each turn of class and group."""
    random = torch.Generator().manual_seed(seed)
    total = sum(counts)
    classes = torch.randint(C, (total,), generator=random)
    groups = torch.randint(last_group + 1, (total,), generator=random)
    confidence = torch.rand(total, generator=random)
    return samples(torch.randn(total, D, generator=random), classes, groups, confidence)


def rows_of(batches: list[Samples], class_index: int, group: int | None) -> Tensor:
    """All rows (n, D + 1) of one class and group, or both regular groups, in order; the confidence last."""
    parts = []
    for batch in batches:
        here = (batch.classes == class_index) & ((batch.groups < 2) if group is None else (batch.groups == group))
        parts.append(torch.cat((batch.features, batch.confidence[:, None]), dim=1)[here])
    return torch.cat(parts)


def held(queue: FeatureQueue, class_index: int, group: int) -> Tensor:
    vectors, confidence = queue.group(class_index, group)
    return torch.cat((vectors.float(), confidence[:, None]), dim=1)


def kept(queue: FeatureQueue, class_index: int) -> Tensor:
    """Rows kept for a rare class, in ascending order of confidence."""
    confidence = queue.fallback_confidence[class_index]
    rows = torch.cat((queue.fallback_features[class_index].float(), confidence[:, None]), dim=1)[confidence >= 0]
    return rows[rows[:, -1].argsort(stable=True)]


APPENDS = st.lists(st.integers(0, 25), min_size=1, max_size=8)


@given(counts=APPENDS, capacity=st.integers(1, 9), seed=st.integers(0, 999), separate=st.booleans())
def test_first_in_first_out(counts, capacity, seed, separate):
    queue = FeatureQueue(C, D, queue_size=capacity, separate_confidence=separate)
    batches = []
    for turn, count in enumerate(counts):
        batches.append(batch_of([count], seed + turn))
        queue.append(batches[-1])
        for c in range(C):
            for g in (0, 1):
                if separate:
                    expected = reference.fifo(rows_of(batches, c, g), capacity)
                elif g == 0:
                    expected = reference.fifo(rows_of(batches, c, None), 2 * capacity)
                else:
                    expected = torch.zeros(0, D + 1)
                assert torch.equal(held(queue, c, g), expected)
                assert int(queue.rows[c, g]) == len(expected)


@given(counts=APPENDS, capacity=st.integers(1, 6), seed=st.integers(0, 999))
def test_the_most_confident_rows_are_kept_for_rare_classes(counts, capacity, seed):
    queue = FeatureQueue(C, D, queue_size=capacity, rare_class_fallback=True)
    batches = []
    for turn, count in enumerate(counts):
        batches.append(batch_of([count], seed + turn, last_group=2))
        queue.append(batches[-1])
        for c in range(C):
            expected = reference.best_kept(rows_of(batches, c, 2), 2 * capacity)
            assert_close(kept(queue, c), expected, atol=0, rtol=0)


@given(high=st.integers(0, 14), low=st.integers(0, 14), fallback=st.integers(0, 50), capacity=st.integers(10, 24),
       reload=st.booleans(), seed=st.integers(0, 999))  # fmt: skip
def test_fill_rare_classes(high, low, fallback, capacity, reload, seed):
    random = torch.Generator().manual_seed(seed)
    queue = FeatureQueue(C, D, queue_size=capacity, rare_class_fallback=True)
    other = samples(torch.randn(12, D, generator=random), 0, torch.arange(12) % 2)
    batches = [other]
    queue.append(other)
    for group, count in enumerate((high, low, fallback)):
        batches.append(samples(torch.randn(count, D, generator=random), 1, group, torch.rand(count, generator=random)))
        queue.append(batches[-1])
    expected = reference.fill_rare_classes(
        reference.fifo(rows_of(batches, 1, 0), capacity),
        reference.fifo(rows_of(batches, 1, 1), capacity),
        reference.best_kept(rows_of(batches, 1, 2), 2 * capacity),
        capacity,
    )
    if reload:  # as after resuming a training just before the clustering
        resumed = FeatureQueue(C, D, queue_size=capacity, rare_class_fallback=True)
        resumed.load_state_dict(queue.state_dict())
        queue = resumed
    untouched = held(queue, 0, 0), held(queue, 0, 1)
    queue.fill_rare_classes()
    for group in (0, 1):
        assert torch.equal(held(queue, 1, group), expected[group])
        assert torch.equal(held(queue, 0, group), untouched[group])
        assert not queue.rows[2].any()


def test_a_filled_queue_goes_on() -> None:
    queue = FeatureQueue(1, 1, queue_size=12, rare_class_fallback=True)
    queue.append(samples(torch.arange(24.0)[:, None], 0, 2, torch.arange(24) / 24))
    queue.fill_rare_classes()
    assert held(queue, 0, 0)[:, 0].tolist() == list(range(12, 24))
    assert held(queue, 0, 1)[:, 0].tolist() == list(range(12))
    queue.append(samples(torch.tensor([[100.0]]), 0, 0))
    assert held(queue, 0, 0)[:, 0].tolist() == [*range(13, 24), 100]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_storage_type(dtype: torch.dtype) -> None:
    queue = FeatureQueue(C, D, queue_size=50, dtype=dtype)
    batch = batch_of([40], 0)
    queue.append(batch)
    vectors, confidence = queue.group(1, 0)
    expected = rows_of([batch], 1, 0)
    assert vectors.dtype == dtype
    assert torch.equal(vectors, expected[:, :-1].to(dtype))
    assert torch.equal(confidence, expected[:, -1])
    assert queue.features.element_size() == torch.empty(0, dtype=dtype).element_size()


def test_rows_that_are_not_finite_are_counted() -> None:
    queue = FeatureQueue(C, D, queue_size=9)
    features = torch.ones(5, D)
    features[0, 1], features[1, 2], features[2, 3] = float("nan"), float("inf"), -float("inf")
    confidence = torch.tensor([0.5, 0.5, 0.5, float("nan"), 0.5])
    queue.append(samples(features, 0, 1, confidence))
    assert int(queue.dropped) == 4
    assert queue.rows.tolist() == [[0, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [7e4, 1e25, 3e38])
def test_rows_too_large_to_square_are_counted(dtype: torch.dtype, size: float) -> None:
    """They would overflow to inf in fp16, or make every distance inf in float32."""
    queue = FeatureQueue(1, D, queue_size=9, dtype=dtype)
    queue.append(samples(torch.tensor([[size, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]]), 0, 0))
    dropped = size > 1e20 or dtype == torch.float16
    assert int(queue.dropped) == dropped
    assert int(queue.rows[0, 0]) == 2 - dropped
    assert queue.features.float().square().sum().isfinite()


def test_other_input_types_are_converted() -> None:
    queue = FeatureQueue(C, D, queue_size=9)
    features = torch.randn(6, D, dtype=torch.float64, requires_grad=True)
    for dtype in (torch.uint8, torch.int32):
        queue.reset()
        classes = torch.tensor([0, 1, 2, 0, 1, 2], dtype=dtype)
        groups = torch.tensor([0, 1, 0, 1, 0, 1], dtype=dtype)
        queue.append(samples(features, classes, groups, torch.rand(6).half()))
        assert queue.rows.tolist() == [[1, 1], [1, 1], [1, 1]]
        assert torch.equal(queue.group(1, 1)[0], features[1:2].float())
    assert not queue.features.requires_grad


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"features": torch.zeros(2, D + 1)}, "features"),
        ({"features": torch.zeros(2, D, 1)}, "features"),
        ({"classes": torch.tensor([0, C])}, "classes"),
        ({"classes": torch.tensor([0, -1])}, "classes"),
        ({"classes": torch.tensor([0])}, "classes"),
        ({"classes": torch.tensor([0.0, 1.5])}, "classes"),
        ({"groups": torch.tensor([0, 2])}, "groups"),
        ({"groups": torch.tensor([-1, 0])}, "groups"),
        ({"groups": torch.tensor([[0, 1]])}, "groups"),
        ({"confidence": torch.zeros(3)}, "confidence"),
    ],
)
def test_bad_samples_change_nothing(changes: dict[str, Tensor], field: str) -> None:
    queue = FeatureQueue(C, D, queue_size=5)
    queue.append(batch_of([20], 1))
    before = state(queue)
    fields = {"features": torch.zeros(2, D), "classes": torch.tensor([0, 1]), "groups": torch.tensor([0, 1])}
    fields |= {"confidence": torch.ones(2), "dropped": torch.tensor(0)} | changes
    with pytest.raises(ValueError, match=rf"samples\.{field}: expected .+, found "):
        queue.append(Samples(**fields))
    assert all(torch.equal(value, before[name]) for name, value in queue.state_dict().items())


@pytest.mark.parametrize("option", [{"queue_size": 0}, {"dtype": torch.float64}, {"dtype": None}])
def test_bad_options(option) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        FeatureQueue(C, D, **option)
    with pytest.raises(ValueError, match="feature_dim"):
        FeatureQueue(C, 0)


def test_unknown_group() -> None:
    for index in ((3, 0), (-1, 0), (0, 2)):
        with pytest.raises(ValueError, match=r"class_index|group"):
            FeatureQueue(C, D, queue_size=2).group(*index)


def test_group_is_a_copy() -> None:
    queue = FeatureQueue(1, D, queue_size=3)
    queue.append(samples(torch.ones(5, D), 0, 0))
    queue.group(0, 0)[0].zero_()
    assert queue.group(0, 0)[0].eq(1).all()


def test_clear_and_release() -> None:
    queue = FeatureQueue(C, D, queue_size=7, rare_class_fallback=True)
    fresh = state(queue)
    batch = batch_of([60], 0, last_group=2)
    queue.append(batch)
    queue.reset()
    assert all(torch.equal(value, fresh[name]) for name, value in queue.state_dict().items())
    queue.append(batch)
    queue.release()
    assert queue.features.untyped_storage().nbytes() == 0
    assert queue.fallback_features.untyped_storage().nbytes() == 0
    assert held(queue, 0, 0).shape == (0, D + 1)
    queue.fill_rare_classes()  # nothing to fill from
    features, rows = queue.stored()
    assert features.shape == (2 * C, 1, D)
    assert not rows.any()
    queue.append(batch)
    assert torch.equal(held(queue, 1, 1), reference.fifo(rows_of([batch], 1, 1), 7))
    assert_close(kept(queue, 1), reference.best_kept(rows_of([batch], 1, 2), 14))


@given(counts=APPENDS, more=APPENDS, capacity=st.integers(1, 12), seed=st.integers(0, 99), fallback=st.booleans(),
       separate=st.booleans(), only=st.sets(st.integers(0, C - 1)))  # fmt: skip
def test_memory_as_needed_holds_the_same_rows(counts, more, capacity, seed, fallback, separate, only):
    options = {"queue_size": capacity, "separate_confidence": separate or fallback, "rare_class_fallback": fallback}
    full, sparing = FeatureQueue(C, D, **options), FeatureQueue(C, D, **options)
    sparing.release()
    chosen = torch.tensor([c in only for c in range(C)])
    for turn, count in enumerate([*counts, None, *more]):
        if count is None:
            sparing.keep_only(chosen)
            for c in range(C):
                kept_before = kept(full, c) if c in only else kept(full, c)[:0]
                assert torch.equal(kept(sparing, c), kept_before)
                for g in (0, 1):
                    assert torch.equal(held(sparing, c, g), held(full, c, g) if c in only else held(full, c, g)[:0])
            full.load_state_dict(sparing.state_dict())
            continue
        batch = batch_of([count], seed + turn, last_group=1 + fallback)
        full.append(batch)
        sparing.add(batch, as_needed=True)
    for c in range(C):
        assert torch.equal(kept(sparing, c), kept(full, c))
        for g in (0, 1):
            assert torch.equal(held(sparing, c, g), held(full, c, g))
    assert sparing.features.shape[2] <= max(int(sparing.rows.max()), 1)
    for queue in (full, sparing):
        queue.fill_rare_classes()
    assert same(state(full), state(sparing))


@given(counts=APPENDS, capacity=st.integers(1, 12), seed=st.integers(0, 99), only=st.sets(st.integers(0, C - 1)))
def test_rows_that_do_not_count_change_nothing(counts, capacity, seed, only):
    """Also where none counts, and a queue fills all memory that there is."""
    options = {"queue_size": capacity, "rare_class_fallback": True}
    queue, other = FeatureQueue(C, D, **options), FeatureQueue(C, D, **options)
    for each in (queue, other):
        each.release()
    for turn, count in enumerate(counts):
        wanted = torch.tensor([c in only for c in range(C)]) & (turn % 2 == 0)
        batch = batch_of([count], seed + turn, last_group=2).of_classes(wanted)
        queue.add(batch, as_needed=True)
        other.add(batch.without_gaps(), as_needed=True)
        assert same(state(queue), state(other))


def test_no_row_counts_beside_the_longest_queue() -> None:
    """That of the last class and group, whose memory ends with its rows."""
    queue = FeatureQueue(C, D, queue_size=9)
    queue.release()
    queue.add(samples(torch.randn(4, D), C - 1, 1), as_needed=True)
    before = state(queue)
    queue.add(batch_of([5], 3).of_classes(torch.zeros(C, dtype=torch.bool)), as_needed=True)
    assert same(state(queue), before)


# --- State ------------------------------------------------------------------------------------------------------------


@given(counts=APPENDS, more=APPENDS, capacity=st.integers(1, 12), seed=st.integers(0, 99), fallback=st.booleans(),
       separate=st.booleans())  # fmt: skip
def test_state_is_trimmed_and_goes_on(counts, more, capacity, seed, fallback, separate):
    options = {"queue_size": capacity, "separate_confidence": separate or fallback, "rare_class_fallback": fallback}
    queue, resumed = FeatureQueue(C, D, **options), FeatureQueue(C, D, **options)
    for turn, count in enumerate(counts):
        queue.append(batch_of([count], seed + turn, last_group=1 + fallback))
    saved = queue.state_dict()
    assert saved["features"].shape == (int(queue.rows.sum()), D)
    assert saved["fallback_features"].shape == (sum(len(kept(queue, c)) for c in range(C)), D)
    assert saved["features"].untyped_storage().nbytes() == saved["features"].nbytes
    resumed.load_state_dict(saved)
    for turn, count in enumerate([0, *more]):
        batch = batch_of([count], 1000 + seed + turn, last_group=1 + fallback)
        queue.append(batch)
        resumed.append(batch)
        for c in range(C):
            assert_close(kept(resumed, c), kept(queue, c), atol=0, rtol=0)
            for g in (0, 1):
                assert torch.equal(held(resumed, c, g), held(queue, c, g))


def test_a_state_has_the_rows_of_each_queue_one_queue_after_the_other() -> None:
    queue = FeatureQueue(2, 1, queue_size=3)
    values, groups = torch.arange(6.0), torch.tensor([1, 0, 0, 0, 0, 1])
    queue.append(samples(values[:, None], torch.tensor([0, 1, 0, 1, 1, 1]), groups, values / 10))
    saved = queue.state_dict()
    expected = torch.tensor([2.0, 0.0, 1.0, 3.0, 4.0, 5.0])
    assert torch.equal(saved["features"].as_subclass(Tensor), expected[:, None])
    assert torch.equal(saved["confidence"].as_subclass(Tensor), expected / 10)


def test_one_long_queue_does_not_make_the_others_long_in_a_state() -> None:
    queue = FeatureQueue(50, D, queue_size=1000)
    queue.append(samples(torch.randn(900, D), 0, 0))
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    assert len(file.getvalue()) < 900 * 4 * (D + 1) + 50 * 5 * 8 + 8000


def test_states_with_queues_of_one_length_load_as_before() -> None:
    """As states had them before version 4: each queue as long as the longest one."""
    queue, other = (FeatureQueue(C, D, queue_size=9, rare_class_fallback=True) for _ in range(2))
    queue.append(batch_of([50], 3, last_group=2))
    longest, most = int(queue.rows.max()), int((queue.fallback_confidence >= 0).sum(1).max())
    before = {name: getattr(queue, name) for name in ("rows", "cursor", "dropped")}
    before |= {name: getattr(queue, name)[:, :, :longest] for name in ("features", "confidence")}
    before |= {name: getattr(queue, name)[:, :most] for name in ("fallback_features", "fallback_confidence")}
    other.load_state_dict(before)
    assert all(torch.equal(value, queue.state_dict()[name]) for name, value in other.state_dict().items())


def test_a_state_with_more_or_fewer_rows_than_it_says_is_refused() -> None:
    queue, other = FeatureQueue(C, D, queue_size=9), FeatureQueue(C, D, queue_size=9)
    queue.append(batch_of([20], 3))
    saved = state(queue)
    saved["confidence"] = saved["confidence"][1:]
    with pytest.raises(ValueError, match=r"confidence: expected 20 rows, as features has, found 19 rows"):
        other.load_state_dict(saved)
    assert not other.rows.any()


def test_loading_replaces_what_was_there() -> None:
    queue, other = FeatureQueue(C, D, queue_size=5), FeatureQueue(C, D, queue_size=5)
    other.append(batch_of([40], 3))
    other.load_state_dict(queue.state_dict())
    assert not other.rows.any()
    assert held(other, 0, 0).shape == (0, D + 1)


@pytest.mark.parametrize("capacity", [3, 9])
def test_a_state_of_another_capacity_is_refused_or_right(capacity: int) -> None:
    """A full ring of 5 rows starts somewhere in its middle: read as another length, its order would be lost."""
    queue = FeatureQueue(1, D, queue_size=5)
    queue.append(samples(torch.randn(7, D), 0, 0))
    other = FeatureQueue(1, D, queue_size=capacity)
    before = state(other)
    with pytest.raises((ValueError, RuntimeError), match=r"capacity|size mismatch"):
        other.load_state_dict(queue.state_dict())
    if capacity == 9:
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


# --- Placement --------------------------------------------------------------------------------------------------------


def test_follows_its_owner_but_keeps_its_type() -> None:
    owner = nn.Sequential(nn.Linear(2, 2), FeatureQueue(C, D, queue_size=5, dtype=torch.bfloat16))
    queue = owner[1]
    queue.append(batch_of([40], 3))
    before = state(queue)
    for convert in (owner.half, owner.double, owner.float, lambda: owner.to(torch.bfloat16)):
        convert()
        assert all(torch.equal(value, before[name]) for name, value in queue.state_dict().items())
    owner.to("meta")
    assert {value.device.type for _, value in queue.named_state()} == {"meta"}
    assert queue.features.shape == (C, 2, 5, D)
    assert queue.features.dtype == torch.bfloat16


def test_cpu_storage_stays() -> None:
    owner = nn.Sequential(nn.Linear(2, 2), FeatureQueue(C, D, queue_size=5, device="cpu"))
    queue = owner[1]
    owner.to("meta")
    assert owner[0].weight.is_meta
    assert {value.device.type for _, value in queue.named_state()} == {"cpu"}
    queue.append(batch_of([40], 3))
    assert queue.rows.sum() > 0


@pytest.mark.cuda
def test_cpu_storage_beside_a_cuda_module() -> None:
    owner = nn.Sequential(nn.Linear(2, 2), FeatureQueue(C, D, queue_size=5, device="cpu")).cuda()
    queue = owner[1]
    batch = batch_of([40], 3)
    queue.append(Samples(**{name: value.cuda() for name, value in vars(batch).items()}))
    assert queue.features.is_pinned()
    assert torch.equal(held(queue, 1, 0), reference.fifo(rows_of([batch], 1, 0), 5))


def test_queues_larger_than_the_memory_are_refused_before_they_are_made() -> None:
    """ADE20K with two million rows: an allocator would say how many bytes, but not why."""
    large = {"num_classes": 150, "feature_dim": 256, "queue_size": 2_000_000}
    with pytest.raises(
        ValueError, match=r"queue_size: expected queues that fit the .* GB of cpu, found 617 GB"
    ) as told:
        FeatureQueue(**large)
    made_of = "num_classes 150 x 4000000 rows x feature_dim 256 in float32"
    for way in (made_of, "queue_size", "queue_dtype=torch.bfloat16", "queue_device"):
        assert way in str(told.value)
    with torch.device("meta"):
        FeatureQueue(**large)


def test_an_allocator_that_fails_says_how_large_the_queues_are(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = FeatureQueue(3, 4, queue_size=10)

    def full(value: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"no room for queues of 1\.2e-06 GB"):
        queue._apply(full)

    def other(value: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such device")

    with pytest.raises(RuntimeError, match="no such device"):
        queue._apply(other)
    assert queue.features.shape == (3, 2, 10, 4)
