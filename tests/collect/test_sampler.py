"""Confidence-based sampling against plain loops over pixels."""

from __future__ import annotations

import dataclasses

import pytest
import reference
import torch
from builders import DIM, fresh, labeled, state, unlabeled
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from brpg_lib import ConfidenceSampler, LabeledBatch, Samples, UnlabeledBatch

pytestmark = pytest.mark.usefixtures("everywhere")

SIDE = st.integers(1, 7)


def sampled(samples: Samples) -> Tensor:
    """Rows (N, D + 3) feature, class, group, confidence, in an order of their own."""
    columns = (samples.classes, samples.groups, samples.confidence)
    rows = torch.cat((samples.features, torch.stack([c.float() for c in columns], dim=1)), dim=1)
    return ordered(rows)


def expected(samples: list[reference.Sample], dim: int) -> Tensor:
    rows = [[*s.feature.tolist(), s.class_id, s.group, s.confidence] for s in samples]
    return ordered(torch.tensor(rows).reshape(-1, dim + 3))


def ordered(rows: Tensor) -> Tensor:
    for column in reversed(range(rows.shape[1])):
        rows = rows[rows[:, column].argsort(stable=True)]
    return rows


def loops(labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, **options) -> Tensor:
    weak = (None, None) if unlabeled is None else (unlabeled.weak_features, unlabeled.weak_logits)
    samples = reference.collect_step(labeled.features.detach(), labeled.logits, labeled.labels, *weak, **options)
    return expected(samples, labeled.features.shape[1])


@given(
    sizes=st.tuples(SIDE, SIDE),
    image=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    weak=st.none() | st.tuples(st.integers(1, 3), st.tuples(SIDE, SIDE)),
    classes=st.integers(1, 4),
    dim=st.integers(1, 4),
    threshold=st.floats(0.3, 0.95),
    floor=st.sampled_from([0.0, 0.25]),
    seed=st.integers(0, 99),
)
def test_equals_the_loops(sizes, image, weak, classes, dim, threshold, floor, seed):
    options = {"num_classes": classes, "dim": dim, "image": image, "size": sizes}
    batch, other = labeled(seed, **options), None
    if weak is not None:
        other = unlabeled(seed, **options, weak_images=weak[0], weak_size=weak[1])
    sampler = ConfidenceSampler(classes, confidence_threshold=threshold, confidence_floor=floor)
    found = sampled(sampler(batch, other))
    assert_close(found, loops(batch, other, threshold=threshold, floor=floor), atol=1e-6, rtol=0)


@pytest.mark.parametrize("ignore_index", [-1, 254, 255, 300])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_every_kind_of_label(ignore_index: int, dtype: torch.dtype) -> None:
    if dtype == torch.uint8 and ignore_index not in (254, 255):
        batch = labeled(ignored=0.0)  # no pixel can carry it
    else:
        batch = labeled(ignored=0.3, ignore_index=ignore_index)
    batch = fresh(batch, labels=batch.labels.to(dtype))
    found = sampled(ConfidenceSampler(3, ignore_index=ignore_index)(batch))
    assert_close(found, loops(batch, None, ignore_index=ignore_index))
    assert len(found) > 10


@given(
    image=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    sizes=st.tuples(SIDE, SIDE),
    align_corners=st.booleans(),
    momentum=st.sampled_from([0.0, 0.5, 0.999]),
    bounds=st.sampled_from([(0.0, 1.0), (0.5, 0.7)]),
    fixed=st.sampled_from([(), (1,), (0, 2)]),
    seed=st.integers(0, 99),
)
def test_class_adaptive_thresholds(image, sizes, align_corners, momentum, bounds, fixed, seed):
    sampler = ConfidenceSampler(
        3, class_adaptive=bounds, adaptive_momentum=momentum, fixed_threshold_classes=fixed, align_corners=align_corners
    )
    average = [0.8] * 3
    for turn in range(2):
        batch = labeled(seed + turn, image=image, size=sizes, absent=(turn,))
        other = unlabeled(seed + turn, image=image, size=sizes)
        found = sampler(batch, other)
        average = reference.update_class_confidence(
            average, batch.logits, batch.labels, momentum, align_corners=align_corners
        )
        assert_close(sampler.thresholds, torch.tensor(average), atol=1e-5, rtol=0)
        thresholds = reference.clip_thresholds(average, *bounds, fixed_classes=fixed)
        assert_close(sampler.class_thresholds(), torch.tensor(thresholds), atol=1e-5, rtol=0)
        wanted = loops(batch, other, class_thresholds=sampler.class_thresholds().tolist())
        assert_close(sampled(found), wanted, atol=1e-6, rtol=0)


def test_the_threshold_is_high_and_the_floor_is_nothing() -> None:
    """Two equal logits: the confidence is exactly one half."""
    batch = LabeledBatch(
        features=torch.ones(1, 1, 1, 1), logits=torch.zeros(1, 2, 1, 1), labels=torch.zeros(1, 1, 1, dtype=torch.int64)
    )
    assert ConfidenceSampler(2, confidence_threshold=0.5)(batch).groups.tolist() == [0]
    assert ConfidenceSampler(2, confidence_threshold=0.6, confidence_floor=0.5)(batch).groups.tolist() == []
    assert ConfidenceSampler(2, confidence_threshold=0.6, confidence_floor=0.4)(batch).groups.tolist() == [1]


def test_class_adaptive_has_no_floor() -> None:
    batch = labeled()
    options = {"class_adaptive": (0.0, 1.0), "adaptive_momentum": 1.0}
    found = sampled(ConfidenceSampler(3, confidence_floor=0.6, **options)(batch))
    assert torch.equal(found, sampled(ConfidenceSampler(3, **options)(batch)))


# --- Caps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [1, 7, 20, 10**6])
def test_caps(cap: int) -> None:
    batch, other = labeled(), unlabeled(weak_images=3)
    found = ConfidenceSampler(3, samples_per_image=cap)(batch, other)
    every = loops(batch, other)
    high, low = ((every[:, -2] == group).sum() for group in (0, 1))
    assert (found.groups == 0).sum() == min(high, cap * 5)
    assert (found.groups == 1).sum() == min(low, cap * 2)
    rows = sampled(found)
    assert len(rows.unique(dim=0)) == len(rows), "drawn without replacement"
    assert torch.cdist(rows.double(), every.double()).amin(1).max() < 1e-5


def imbalanced() -> LabeledBatch:
    """One image of 1000 pixels, all right and high: 900 of class 0, 90 of class 1, 10 of class 2."""
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10).view(1, 20, 50)
    logits = 20 * torch.nn.functional.one_hot(labels, 3).movedim(3, 1).float()
    return LabeledBatch(features=torch.arange(1000.0).view(1, 1, 20, 50), logits=logits, labels=labels)


@pytest.mark.parametrize(("exponent", "weights"), [(None, (1, 1, 1)), (0.5, (30, 9.49, 3.16)), (1.0, (900, 90, 10))])
def test_class_balance(exponent: float | None, weights: tuple[float, ...]) -> None:
    """The first pixel drawn is of each class in proportion to count / count ** exponent."""
    sampler = ConfidenceSampler(3, samples_per_image=1, class_balance=exponent)
    batch, draws = imbalanced(), 500
    counts = sum(sampler(batch).classes.bincount(minlength=3) for _ in range(draws))
    share = torch.tensor([900.0, 90.0, 10.0]) / torch.tensor(weights, dtype=torch.float32)
    share = share / share.sum()
    deviation = (share * (1 - share) / draws).sqrt()
    assert ((counts / draws - share).abs() < 4 * deviation + 1e-3).all(), counts


def test_draws_are_uniform_and_change_from_call_to_call() -> None:
    sampler = ConfidenceSampler(3, samples_per_image=100)
    batch = imbalanced()
    counts = torch.zeros(1000)
    previous: set[float] = set()
    for _ in range(200):
        drawn = sampler(batch).features[:, 0]
        counts[drawn.long()] += 1
        assert set(drawn.tolist()) != previous
        previous = set(drawn.tolist())
    assert ((counts - 20) ** 2 / 18).sum() == pytest.approx(1000, abs=250)


def test_draws_are_a_function_of_seed_and_counter() -> None:
    def drawn(seed: int, skip: int) -> list[float]:
        sampler = ConfidenceSampler(3, samples_per_image=100, seed=seed)
        sampler.draws += skip
        return sampler(imbalanced()).features[:, 0].tolist()

    torch.manual_seed(1)
    assert drawn(0, 3) == drawn(0, 3)
    assert drawn(0, 3) != drawn(0, 4)
    assert drawn(0, 3) != drawn(1, 3)


# --- Options ----------------------------------------------------------------------------------------------------------


def test_pooled() -> None:
    batch, other = labeled(), unlabeled()
    found = sampled(ConfidenceSampler(3, separate_confidence=False)(batch, other))
    every = loops(batch, other)
    every[:, -2] = 0
    assert_close(found, ordered(every), atol=1e-6, rtol=0)
    few = ConfidenceSampler(3, separate_confidence=False, samples_per_image=5)(batch, other)
    assert len(few) == 5 * 4 + 5 * 2


def test_rare_class_fallback() -> None:
    batch, other = labeled(), unlabeled()
    found = ConfidenceSampler(3, rare_class_fallback=True)(batch, other)
    rows = reference.collect_fallback(batch.features.detach(), batch.logits, batch.labels)
    wanted = expected([reference.Sample(f, c, 2, p) for f, c, p in rows], DIM)
    everything = sampled(found)
    assert_close(everything[everything[:, -2] == 2], wanted, atol=1e-6, rtol=0)
    assert_close(everything[everything[:, -2] < 2], loops(batch, other), atol=1e-6, rtol=0)


def test_rare_class_fallback_is_capped_per_class() -> None:
    sampler = ConfidenceSampler(3, rare_class_fallback=True, samples_per_image=40)
    first, second = (sampler(imbalanced()) for _ in range(2))
    kept = [s.features[s.groups == 2][:, 0].tolist() for s in (first, second)]
    assert first.classes[first.groups == 2].bincount(minlength=3).tolist() == [40, 40, 10]
    assert kept[0] != kept[1]
    assert len(set(kept[0])) == 90


def test_eval_changes_nothing() -> None:
    sampler = ConfidenceSampler(3, class_adaptive=(0.5, 0.9), samples_per_image=5)
    sampler(labeled(), unlabeled())
    before = state(sampler)
    sampler.eval()
    first, second = (sampler(labeled(1), unlabeled(1)) for _ in range(2))
    assert all(torch.equal(value, before[name]) for name, value in sampler.state_dict().items())
    assert torch.equal(sampled(first), sampled(second))


# --- Sceptical input --------------------------------------------------------------------------------------------------


def test_logits_that_are_not_finite_are_dropped_and_counted() -> None:
    batch, other = labeled(ignored=0.0, image=(9, 11)), unlabeled()
    clean = ConfidenceSampler(3)(batch, other)
    assert int(clean.dropped) == 0
    logits, weak = batch.logits.clone(), other.weak_logits.clone()
    logits[0, 1, 2, 3], logits[1, 0, 0, 0], weak[0, 2, 4, 4] = float("nan"), float("inf"), float("nan")
    sampler = ConfidenceSampler(3, class_adaptive=(0.0, 1.0), rare_class_fallback=True)
    found = sampler(fresh(batch, logits=logits), fresh(other, weak_logits=weak))
    assert int(found.dropped) == 3
    assert found.confidence.isfinite().all()
    assert sampler.thresholds.isfinite().all()
    assert (found.groups == 2).sum() == batch.labels.numel() - 2


def test_padding_of_weak_views_is_no_sample() -> None:
    batch, other = labeled(), unlabeled()
    valid = torch.ones(2, 40, 50, dtype=torch.bool)
    valid[0, :, :25] = False
    weak = other.weak_logits.clone()
    weak[0, :, :, 0] = float("nan")
    found = ConfidenceSampler(3)(batch, fresh(other, weak_logits=weak, weak_valid=valid))
    assert int(found.dropped) == 0
    columns = other.weak_features.shape[3]
    shown = torch.arange(columns) * 50 // columns >= 25
    cut = fresh(other, weak_features=other.weak_features[:1, ..., shown], weak_logits=other.weak_logits[:1, ..., shown])
    rest = fresh(other, weak_features=other.weak_features[1:], weak_logits=other.weak_logits[1:])
    parts = [ConfidenceSampler(3)(batch), ConfidenceSampler(3)(batch, cut), ConfidenceSampler(3)(batch, rest)]
    assert len(found) == len(parts[1]) + len(parts[2]) - len(parts[0])
    assert len(parts[1]) - len(parts[0]) > 0


def test_a_class_that_is_impossible_is_no_error() -> None:
    batch = labeled()
    logits = batch.logits.clone()
    logits[:, 2] = -torch.inf
    found = ConfidenceSampler(3)(fresh(batch, logits=logits))
    assert int(found.dropped) == 0
    assert set(found.classes.tolist()) <= {0, 1}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    batch, other = labeled(), unlabeled()
    halves = {"features": batch.features.detach().to(dtype), "logits": batch.logits.to(dtype)}
    weak = {"weak_features": other.weak_features.to(dtype), "weak_logits": other.weak_logits.to(dtype)}
    found = ConfidenceSampler(3)(fresh(batch, **halves), fresh(other, **weak))
    assert found.features.dtype == found.confidence.dtype == torch.float32
    as_float = fresh(batch, **{k: v.float() for k, v in halves.items()})
    as_float_weak = fresh(other, **{k: v.float() for k, v in weak.items()})
    assert_close(sampled(found), loops(as_float, as_float_weak), atol=1e-6, rtol=0)


def test_any_layout_and_no_gradient() -> None:
    batch = labeled()
    other = dataclasses.replace(
        batch,
        features=batch.features.contiguous(memory_format=torch.channels_last),
        logits=batch.logits.mT.contiguous().mT,
        labels=batch.labels.mT.contiguous().mT,
    )
    found = ConfidenceSampler(3)(other)
    assert torch.equal(sampled(found), sampled(ConfidenceSampler(3)(batch)))
    assert not found.features.requires_grad


def test_thresholds_keep_their_precision() -> None:
    owner = torch.nn.Sequential(ConfidenceSampler(3, class_adaptive=(0.0, 1.0))).half()
    assert owner[0].thresholds.dtype == torch.float32
    before = owner[0].thresholds.clone()
    owner[0](labeled())
    assert not torch.equal(owner[0].thresholds, before)


def test_bad_input_changes_nothing() -> None:
    sampler = ConfidenceSampler(3, class_adaptive=(0.0, 1.0))
    before = state(sampler)
    batch = labeled()
    for field, bad in (
        ("labeled.logits", fresh(batch, logits=None)),
        ("labeled.logits", labeled(num_classes=4)),
        ("labeled.labels", fresh(batch, labels=torch.full_like(batch.labels, 7))),
    ):
        with pytest.raises(ValueError, match=f"{field}: expected"):
            sampler(bad)
    with pytest.raises(ValueError, match=r"unlabeled\.weak_features"):
        sampler(batch, fresh(unlabeled(), weak_features=unlabeled(dim=7).weak_features))
    assert all(torch.equal(value, before[name]) for name, value in sampler.state_dict().items())
    with pytest.raises(ValueError, match="fixed_threshold_classes: expected classes below 3, found 3"):
        ConfidenceSampler(3, fixed_threshold_classes=(3,))


def test_thresholds_of_a_million_pixels_are_exact() -> None:
    """One by one in float32, so many numbers do not add up."""
    sampler = ConfidenceSampler(2, class_adaptive=(0.0, 1.0), adaptive_momentum=0.0)
    logits = torch.tensor([0.9, 0.1]).log()[None, :, None, None].expand(1, 2, 3, 3)
    labels = torch.zeros(1, 1500, 1500, dtype=torch.int64)
    sampler(LabeledBatch(features=torch.ones(1, 4, 3, 3), logits=logits, labels=labels))
    assert sampler.thresholds[0].item() == pytest.approx(0.9, abs=1e-5)
