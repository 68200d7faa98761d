"""Phases and the ramp of the pseudo-label threshold."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from brpg_lib import Phase, Schedule

LENGTHS = {"warmup": 2, "collect": 3, "total": 20}
COUNT = (-1, 1.5, "3", True, math.nan)
WRONG: dict[str, tuple[Any, ...]] = {
    "warmup": (*COUNT, None),
    "collect": (*COUNT, None),
    "total": (*COUNT, None, 0, 4),
    "ramp_start": COUNT,
    "extrapolate_threshold": (None, 1, "yes"),
    "pseudo_threshold_range": (0.8, (0.8,), (0.8, 1.1), (-0.1, 0.9), (math.nan, 0.9), "08", None, (0.1, 0.2, 0.3)),
    "recluster_every": (*COUNT, 0),
    "min_rows": (*COUNT, None),
    "max_collect": (*COUNT, 2),
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in WRONG.items() for v in values])
def test_wrong_values_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{field}(\[\d\])?: expected .+, found "):
        Schedule(**(LENGTHS | {field: value}))


def test_phases() -> None:
    schedule = Schedule(**LENGTHS)
    phases = [schedule.phase(i) for i in range(25)]
    assert phases == [Phase.WARMUP] * 2 + [Phase.COLLECT] * 3 + [Phase.LEARN] * 20


def test_phases_may_be_empty() -> None:
    assert Schedule(warmup=0, collect=0, total=1).phase(0) is Phase.LEARN
    assert Schedule(warmup=0, collect=2, total=2).phase(0) is Phase.COLLECT


@given(total=st.integers(1, 1000), start=st.integers(0, 999), iteration=st.integers(0, 1000))
def test_threshold_is_the_published_line(total: int, start: int, iteration: int) -> None:
    if start >= total or iteration > total:
        return
    published, clamped = (
        Schedule(warmup=0, collect=0, total=total, ramp_start=start, extrapolate_threshold=e) for e in (True, False)
    )
    expected = reference.pseudo_threshold(iteration, start, total)
    for schedule, threshold in ((published, expected), (clamped, max(0.8, expected))):
        assert schedule.pseudo_threshold(iteration) == pytest.approx(threshold, abs=1e-12)
        on_device = schedule.pseudo_threshold(torch.tensor(iteration))
        assert on_device.item() == pytest.approx(threshold, rel=1e-6, abs=1e-6)


def test_threshold_ends() -> None:
    schedule = Schedule(warmup=0, collect=0, total=100, ramp_start=20, pseudo_threshold_range=(0.6, 0.9))
    assert schedule.pseudo_threshold(20) == pytest.approx(0.6)
    assert schedule.pseudo_threshold(0) == 0.6
    assert schedule.pseudo_threshold(100) == pytest.approx(0.9)
    assert schedule.pseudo_threshold(10**6) == pytest.approx(0.9), "a longer training keeps the upper end"


@pytest.mark.parametrize("ramp_start", [20, 21, 1000])
def test_a_ramp_that_starts_at_the_end_never_starts(ramp_start: int) -> None:
    schedule = Schedule(**LENGTHS, ramp_start=ramp_start)
    assert {schedule.pseudo_threshold(i) for i in (0, 5, 19, 20, 21, 5000)} == {0.8}


@pytest.mark.parametrize(("total", "start"), [(80, 5), (52960, 3310), (6, 0), (100, 6)])
def test_the_ramp_starts_after_a_sixteenth_by_default(total: int, start: int) -> None:
    assert Schedule(warmup=1, collect=1, total=total).ramp_start == start
    assert Schedule.from_epochs(warmup=0.1, collect=0.1, total=total / 10, iters_per_epoch=10).ramp_start == start


def test_a_short_training_learns_from_no_doubtful_pseudo_label() -> None:
    schedule = Schedule.from_epochs(warmup=1, collect=1, total=6, iters_per_epoch=50)
    assert min(schedule.pseudo_threshold(i) for i in range(300)) == 0.8
    published = Schedule.from_epochs(
        warmup=1, collect=1, total=6, iters_per_epoch=50, ramp_start=5, extrapolate_threshold=True
    )
    assert published.pseudo_threshold(100) == pytest.approx(0.35)


def test_falling_ranges_are_allowed() -> None:
    schedule = Schedule(**LENGTHS, pseudo_threshold_range=(0.9, 0.5))
    assert schedule.pseudo_threshold(20) == pytest.approx(0.5)


def test_from_epochs() -> None:
    schedule = Schedule.from_epochs(warmup=1, collect=1, total=80, iters_per_epoch=662)
    assert schedule == Schedule(warmup=662, collect=662, total=52960, ramp_start=3310)
    schedule = Schedule.from_epochs(
        warmup=0.5, collect=1, total=4, iters_per_epoch=10, ramp_start=2, recluster_every=0.5, min_rows=7, max_collect=2
    )
    options = {"ramp_start": 20, "recluster_every": 5, "min_rows": 7, "max_collect": 20}
    assert schedule == Schedule(warmup=5, collect=10, total=40, **options)


@pytest.mark.parametrize("field", ["warmup", "collect", "total", "ramp_start", "recluster_every", "max_collect"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1"])
def test_from_epochs_refuses_by_name(field: str, value: Any) -> None:
    lengths = {"warmup": 1, "collect": 1, "total": 9, "iters_per_epoch": 10}
    with pytest.raises((TypeError, ValueError), match=field):
        Schedule.from_epochs(**(lengths | {field: value}))


def test_from_epochs_refuses_an_empty_loader() -> None:
    with pytest.raises(ValueError, match="iters_per_epoch: expected an integer >= 1, found 0"):
        Schedule.from_epochs(warmup=1, collect=1, total=9, iters_per_epoch=0)
    with pytest.raises(ValueError, match="recluster_every"):
        Schedule.from_epochs(warmup=1, collect=1, total=9, iters_per_epoch=10, recluster_every=0)


def test_what_is_not_0_lasts_an_iteration() -> None:
    schedule = Schedule.from_epochs(warmup=0.01, collect=0, total=9, iters_per_epoch=10, recluster_every=0.01)
    assert [schedule.warmup, schedule.collect, schedule.recluster_every] == [1, 0, 1]


def test_lists_from_a_file_become_tuples() -> None:
    schedule = Schedule(**LENGTHS, pseudo_threshold_range=[0.7, 0.9])  # type: ignore[arg-type]
    assert schedule == Schedule(**LENGTHS, pseudo_threshold_range=(0.7, 0.9))
    assert hash(schedule)


@pytest.mark.parametrize("options", [{}, {"recluster_every": 3, "min_rows": 5, "max_collect": 9, "ramp_start": 2}])
def test_survives_json(options: dict[str, Any]) -> None:
    schedule = Schedule(warmup=1, collect=2, total=9, **options)
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


def test_an_unknown_field_of_a_dict_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Schedule\.warm_up: did you mean warmup\? expected one of"):
        Schedule.from_dict({"warm_up": 1, "collect": 1, "total": 9})


@given(total=st.integers(1, 100_000))
def test_small_data_has_the_shares_that_were_measured(total: int) -> None:
    schedule = Schedule.small_data(total)
    assert schedule.total == total
    assert schedule.warmup == pytest.approx(total / 5, abs=1)
    assert schedule.collect == pytest.approx(max(1, total / 20), abs=1)
    assert schedule.recluster_every == pytest.approx(max(1, total / 20), abs=1)
    assert schedule.phase(schedule.warmup) is Phase.COLLECT


def test_small_data_takes_other_fields() -> None:
    schedule = Schedule.small_data(1000, recluster_every=None, collect=100)
    assert schedule == Schedule(warmup=200, collect=100, total=1000)
    with pytest.raises(TypeError, match="did you mean 'warmup'"):
        Schedule.small_data(1000, warmpu=3)
    with pytest.raises(TypeError, match="total: expected an integer"):
        Schedule.small_data("1000")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="total"):
        Schedule.small_data(0)
