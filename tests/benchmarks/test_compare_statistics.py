"""Intervals hold as often as they say, on draws whose true difference is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from brpg_lib.benchmarks.compare.bootstrap import ImageCounts, image_bootstrap
from brpg_lib.benchmarks.compare.power import MOST_UNITS, more_needed, units_needed
from brpg_lib.benchmarks.compare.statistics import (
    Differences,
    Estimate,
    estimates,
    other_seeds,
    other_settings,
    students,
)

DRAWS = 1000
TRUTH = 0.7
Rng = np.random.Generator


def coverage(draw: Callable[[Rng], Estimate | None], truth: float = TRUTH, seed: int = 0) -> float:
    rng = np.random.default_rng(seed)
    held = 0
    for _ in range(DRAWS):
        estimate = draw(rng)
        assert estimate is not None
        held += estimate.low <= truth <= estimate.high
    return held / DRAWS


def table(values: np.ndarray, own_seeds: bool) -> Differences:
    """Of differences ``(settings, seeds)``; every setting has the same seeds, or its own."""
    return {
        f"setting {i}": {f"{i * own_seeds}-{j}": float(value) for j, value in enumerate(row)}
        for i, row in enumerate(values)
    }


@pytest.mark.parametrize("count", [3, 6, 30])
def test_students_interval_covers(count: int) -> None:
    assert 0.93 <= coverage(lambda rng: students(rng.normal(TRUTH, 1.5, count).tolist())) <= 0.97


def test_scores_that_a_seed_moves_in_both_runs_cancel() -> None:
    """Seeds that move both runs by ten points leave the interval of a small difference as narrow as it was."""

    def draw(rng: Rng) -> Estimate:
        level = rng.normal(70, 10, 6)
        before, after = level + rng.normal(0, 0.3, 6), level + TRUTH + rng.normal(0, 0.3, 6)
        return students((after - before).tolist())

    assert 0.93 <= coverage(draw) <= 0.97
    estimate = draw(np.random.default_rng(1))
    assert estimate.high - estimate.low < 2


def test_seeds_that_settings_share_are_the_unit() -> None:
    """Six settings of three seeds, whose differences move together: eighteen pairs are three seeds."""

    def draw(rng: Rng) -> Estimate | None:
        of_seed, of_setting = rng.normal(0, 2, 3), np.array([-1, 1, 0, 2, -2, 0])[:, None]
        return other_seeds(table(TRUTH + of_seed + of_setting + rng.normal(0, 0.5, (6, 3)), own_seeds=False))

    assert 0.93 <= coverage(draw) <= 0.97

    def naive(rng: Rng) -> Estimate:
        of_seed = rng.normal(0, 2, 3)
        return students((TRUTH + of_seed + rng.normal(0, 0.5, (6, 3))).ravel().tolist())

    assert coverage(naive) < 0.75, "what taking all pairs as independent would do"


@pytest.mark.parametrize("deviations", [(1.0, 1.0, 1.0), (0.3, 1.0, 3.0)])
def test_other_seeds_on_fixed_settings_with_seeds_of_their_own(deviations: tuple[float, ...]) -> None:
    effects, scale = np.array([-3, 1, 2])[:, None], np.array(deviations)[:, None]

    def draw(rng: Rng) -> Estimate | None:
        return other_seeds(table(TRUTH + effects + scale * rng.normal(0, 1, (3, 4)), own_seeds=True))

    assert 0.93 <= coverage(draw) <= 0.97


@pytest.mark.parametrize("count", [3, 6])
def test_other_settings_cover_effects_of_settings(count: int) -> None:
    def draw(rng: Rng) -> Estimate | None:
        effects = rng.normal(0, 2, (count, 1))
        return other_settings(table(TRUTH + effects + rng.normal(0, 0.5, (count, 3)), own_seeds=True))

    assert 0.93 <= coverage(draw) <= 0.97

    def seeds_only(rng: Rng) -> Estimate | None:
        effects = rng.normal(0, 2, (count, 1))
        return other_seeds(table(TRUTH + effects + rng.normal(0, 0.5, (count, 3)), own_seeds=True))

    assert coverage(seeds_only) < 0.6, "the other interval does not speak of other settings"


def test_other_settings_with_these_seeds() -> None:
    of_seed = np.array([1.0, -0.5, 0.4])

    def draw(rng: Rng) -> Estimate | None:
        effects = rng.normal(0, 2, (5, 1))
        return other_settings(table(TRUTH + effects + of_seed + rng.normal(0, 0.5, (5, 3)), own_seeds=False))

    assert 0.93 <= coverage(draw, TRUTH + of_seed.mean()) <= 0.97


@pytest.mark.parametrize("freedom", [3, 5])
def test_heavy_tails_cost_little(freedom: int) -> None:
    def draw(rng: Rng) -> Estimate:
        return students((TRUTH + rng.standard_t(freedom, 6)).tolist())

    assert 0.93 <= coverage(draw) <= 0.985


def test_intervals_of_all_classes_hold_simultaneously() -> None:
    rng, classes, held = np.random.default_rng(0), 21, 0
    level = 1 - 0.05 / classes
    for _ in range(300):
        drawn = [students(rng.normal(TRUTH, 1, 6).tolist(), level) for _ in range(classes)]
        held += all(estimate.low <= TRUTH <= estimate.high for estimate in drawn)
    assert 0.91 <= held / 300 <= 0.99


def test_the_headline_and_its_unit() -> None:
    def said(values: list[list[float]], own: bool) -> list[tuple[str, int]]:
        return [(e.scope, e.count) for e in estimates(table(np.array(values), own))]

    assert said([[1, 2, 3]], False) == [("other seeds", 3)]
    assert said([[1, 2], [3, 4]], False) == [
        ("other seeds, on these 2 settings", 2),
        ("other settings, with these 2 seeds", 2),
    ]
    assert said([[1, 2], [3, 4], [5, 6]], True) == [
        ("other settings and seeds", 3),
        ("other seeds, on these 3 settings", 6),
    ]
    assert said([[1], [2]], False) == [("other settings, with this one seed", 2)]
    assert said([[1], [2]], True) == [("other settings and seeds", 2)]
    (alone,) = estimates({"": {"0": 1.0}})
    assert (alone.mean, alone.known, alone.count, alone.sign) == (1.0, False, 1, 0)


def test_a_setting_with_one_seed_takes_the_pooled_variance() -> None:
    found = other_seeds({"a": {"0": 0.0, "1": 2.0}, "b": {"2": 3.0}})
    assert found is not None
    assert found.mean == 2.0
    assert found.error == pytest.approx(math.sqrt(2 / 2 + 2 / 1) / 2)
    assert found.high - found.mean == pytest.approx(12.706 * found.error, rel=1e-4), "one degree of freedom"


def test_units_needed_have_the_power_they_say() -> None:
    rng = np.random.default_rng(0)
    for mean, deviation in ((1.0, 1.0), (0.5, 1.0), (3.0, 1.0)):
        needed = units_needed(mean, deviation)
        assert needed is not None
        drawn = rng.normal(mean, deviation, (4000, needed))
        error = drawn.std(axis=1, ddof=1) / math.sqrt(needed)
        critical = students([0.0] * (needed - 1) + [1.0])
        factor = (critical.high - critical.mean) / critical.error
        found = (drawn.mean(axis=1) > factor * error).mean()
        assert 0.77 <= found <= (0.83 if needed > 6 else 1.0)


def test_units_needed_at_the_edges() -> None:
    assert units_needed(0.0, 1.0) is None
    assert units_needed(1e-9, 1.0) is None
    assert units_needed(100.0, 1.0) == 2
    assert units_needed(1.0, 0.0) == 2
    edge = units_needed(0.09, 1.0)
    assert edge is not None
    assert 900 < edge <= MOST_UNITS
    assert units_needed(0.085, 1.0) is None
    assert more_needed(students([-0.1, 0.1])) is None


def test_bootstrap_counts_as_whole_confusion_matrices_do() -> None:
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 20, (30, 3, 3))
    total = confusion.sum(0)
    expected = 100 * np.diag(total) / (total.sum(0) + total.sum(1) - np.diag(total))
    np.testing.assert_allclose(ImageCounts.of(confusion).scores(), expected)


def test_bootstrap_of_absent_and_equal_classes() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(1, 20, (30, 3, 3))
    before[:, 2] = 0
    after = before.copy()
    after[:, 0, 0] += 5
    after[:, 0, 1] = np.maximum(after[:, 0, 1] - 5, 0)
    overall, classes = image_bootstrap([(ImageCounts.of(before), ImageCounts.of(after))], resamples=200)
    assert overall.sign == 1
    assert classes[2] is None
    assert classes[0] is not None
    assert classes[0].sign == 1
    again, _ = image_bootstrap([(ImageCounts.of(before), ImageCounts.of(after))], resamples=200)
    assert repr(again) == repr(overall), "seeded"  # one field is no number
    same, equal = image_bootstrap([(ImageCounts.of(before), ImageCounts.of(before))], resamples=200)
    assert (same.low, same.mean, same.high) == (0, 0, 0)
    assert equal[0] is not None
    assert (equal[0].low, equal[0].high) == (0, 0)


def confusions(rng: Rng, images: int, right: np.ndarray) -> np.ndarray:
    """Two classes of 100 pixels each in each image; ``right`` is a share per image."""
    hits = rng.binomial(100, np.clip(right, 0, 1)[:, None], (images, 2))
    rows = [np.stack([hits[:, 0], 100 - hits[:, 0]], 1), np.stack([100 - hits[:, 1], hits[:, 1]], 1)]
    return np.stack(rows, 1)


def test_bootstrap_covers_other_images() -> None:
    rng, held, draws, images = np.random.default_rng(0), 0, 200, 100

    def pair(count: int) -> tuple[ImageCounts, ImageCounts]:
        hard = rng.uniform(0.4, 0.9, count)
        before, after = confusions(rng, count, hard), confusions(rng, count, hard + rng.normal(0.02, 0.05, count))
        return ImageCounts.of(before), ImageCounts.of(after)

    large_before, large_after = pair(200_000)
    truth = float(large_after.scores().mean() - large_before.scores().mean())
    for draw in range(draws):
        overall, _ = image_bootstrap([pair(images)], resamples=500, seed=draw)
        held += overall.low <= truth <= overall.high
    assert 0.90 <= held / draws <= 0.985
