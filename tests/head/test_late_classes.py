"""Classes that come late, or hardly at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from builders import (
    CLASSES,
    Batches,
    assert_sound,
    fresh,
    head,
    labeled,
    replace_everywhere,
    run,
    same,
    state,
    step,
    unlabeled,
)
from torch import Tensor

from brpg_lib import Phase
from brpg_lib.notices import LateReader

pytestmark = pytest.mark.usefixtures("everywhere")


def test_a_class_joins_late() -> None:
    module = run(head(), 10, absent=(2,))
    assert module.bank.present == [True, True, False]
    out, first, second = step(module, absent=(2,))
    assert_sound(out, first, second)
    assert not module.bank.prototypes[2].any()
    run(module, 2)
    assert module.bank.present == [True, True, True]
    out, *_ = step(module)
    assert out.metrics["accuracy_labeled"] > 0.75
    assert module.queue.features.numel() == 0, "the queues are free once every class has prototypes"


@pytest.mark.parametrize("options", [{}, {"rare_class_fallback": True}, {"separate_confidence": False}], ids=str)
def test_rows_are_kept_for_classes_that_have_no_prototypes_only(options: dict[str, object]) -> None:
    """Nothing will ever read those of the others; a class that waits gets what it would have got."""
    module = run(head(num_prototypes=(150, 150), split_fraction=0.0, **options), 6, absent=(2,))
    assert module.bank.present == [True, True, False]
    assert not module.queue.rows.any()
    assert module.queue.features.numel() == 0
    rows = 0
    while not module.bank.present[2]:
        assert module.queue.rows[2].sum() >= rows
        rows = int(module.queue.rows[2].sum())
        out, *_ = step(module)
        assert not module.queue.rows[:2].any()
        assert not (module.queue.fallback_confidence[:2] >= 0).any()
        assert out.metrics["rows_high"] + out.metrics["rows_low"] == module.queue.rows[2].sum()
        assert len(module.state_dict()["queue.features"]) == module.queue.rows[2].sum()
        assert module.queue.features.shape[2] == module.queue.rows[2].max(), "no memory for more than there is"
    assert 0 < rows < 300


def test_rows_are_kept_for_all_classes_where_they_are_clustered_again() -> None:
    module = run(head(recluster_every=4), 7, absent=(2,))
    assert module.queue.rows[:2].all()
    before = module.queue.rows.clone()
    run(module, 1)
    assert (module.queue.rows[:2] >= before[:2]).all()


def test_weak_views_are_wanted_while_a_class_is_awaited() -> None:
    module = run(head(), 6, absent=(2,))
    assert not module.samples_weak_views
    module(fresh(labeled(0), logits=None), unlabeled(0))  # shows class 2, cannot be sampled
    assert module.samples_weak_views
    run(module, 2)
    assert all(module.bank.present)
    assert not module.samples_weak_views


@pytest.mark.parametrize(
    "options",
    [{}, {"warmup": 0, "collect": 0}, {"warmup": 0, "collect": 1}, {"recluster_every": 2}, {"min_rows": 30}],
    ids=str,
)
def test_weak_views_are_wanted_where_they_are_sampled(options: dict[str, int]) -> None:
    """A trainer that gives them only where they are wanted gets the prototypes that it would get anyway."""
    module, sparing = head(**options), head(**options)
    for i in range(12):
        before = int(module.sampler.draws)
        first, second = labeled(10 * i, absent=(2,) if i < 7 else ()), unlabeled(10 * i, absent=(2,) if i < 7 else ())
        if i < 3:  # nothing to collect
            first, second = (
                fresh(first, labels=torch.full_like(first.labels, 255)),
                fresh(second, weak_features=None, weak_logits=None),
            )
        wanted = module.samples_weak_views
        module(first, second)
        assert wanted == (int(module.sampler.draws) > before)
        sparing(fresh(first), second if wanted else fresh(second, weak_features=None, weak_logits=None))
        assert same(state(module), state(sparing))
    assert all(module.bank.present)


@pytest.mark.parametrize("options", [{}, {"recluster_every": 3}, {"min_rows": 5}], ids=str)
def test_rows_of_an_ignored_class_alone_do_not_end_the_collecting(options: dict[str, int]) -> None:
    """The teacher may predict it, and nothing else at first."""
    module = head(warmup=0, collect=1, ignore_index=0, **options)
    second = unlabeled(0)
    assert second.weak_logits is not None
    logits = torch.zeros_like(second.weak_logits)
    logits[:, 0] = 9.0
    first = labeled(0, ignore_index=0)
    module(fresh(first, labels=torch.zeros_like(first.labels)), fresh(second, weak_logits=logits))
    assert module.queue.rows.count_nonzero() == 1
    for i in range(6):
        module(labeled(10 * i, ignore_index=0), unlabeled(10 * i))
    assert module.bank.present == [False, True, True]


def test_a_class_that_never_comes_costs_no_sampling() -> None:
    module = run(head(), 5, absent=(2,))
    before = state(module.sampler), module.queue.rows.clone()
    run(module, 3, absent=(2,))
    assert same(state(module.sampler), before[0])
    assert torch.equal(module.queue.rows, before[1])


def test_a_late_class_joins_from_its_rare_class_rows() -> None:
    module = run(head(rare_class_fallback=True), 6, absent=(2,))
    wrong = labeled(0)
    assert wrong.logits is not None
    never_right = wrong.logits.clone()
    never_right[:, 2] = -20.0  # so that no pixel of class 2 enters its high or low group
    for _ in range(2):
        module(fresh(wrong, logits=never_right))
    assert module.bank.present == [True, True, True]


def test_points_of_an_absent_class_are_no_loss_but_no_nan() -> None:
    module = run(head(), 6, absent=(2,))
    first = fresh(labeled(0), logits=None)  # without logits nothing can join
    assert (first.labels == 2).any()
    out = module(first, unlabeled(0))
    assert_sound(out, first)
    hidden = torch.where(first.labels == 2, 255, first.labels)
    twin = run(head(), 6, absent=(2,))
    assert torch.equal(twin(fresh(first, labels=hidden), unlabeled(0)).loss_labeled, out.loss_labeled)


def test_nothing_was_collected() -> None:
    module = head()
    nothing = {"labels": torch.full((2, 17, 21), 255)}
    for i in range(6):
        first = fresh(labeled(i), **nothing)
        out = module(first, None)
        assert_sound(out, first)
        assert out.loss == 0
    assert not module.bank.mask.any()
    run(module, 2)
    assert all(module.bank.present)


def test_fewer_rows_than_prototypes() -> None:
    module = head(num_prototypes=(4, 3), split_fraction=0.0, samples_per_image=1, warmup=0, collect=1)
    first, second = labeled(0, num_images=1), unlabeled(0, num_images=1)
    module(first, second)
    rows = module.queue.rows.clone()
    assert 0 < int(rows.sum()) < 7
    out = module(fresh(first, logits=None), second)
    assert_sound(out, second)
    assert torch.equal(module.bank.mask.sum(2), torch.minimum(rows, torch.tensor([4, 3])))


def rare(seed: int) -> Batches:
    """Batches in which class 2 is labeled, but nobody ever predicts it."""
    first, second = labeled(seed), unlabeled(seed)
    logits, weak = first.logits.clone(), second.weak_logits.clone()
    logits[:, 2] -= 10
    weak[:, 2] -= 20
    return fresh(first, logits=logits), fresh(second, weak_logits=weak)


def test_rare_classes() -> None:
    plain, fallback = head(), head(rare_class_fallback=True)
    for i in range(8):
        for module in (plain, fallback):
            batches = rare(i)
            assert_sound(module(*batches), *batches)
    assert plain.bank.present == [True, True, False]
    assert fallback.bank.present == [True, True, True]
    accuracy = fallback(*rare(9)).metrics["accuracy_labeled"]
    assert accuracy > plain(*rare(9)).metrics["accuracy_labeled"] + 0.05


def test_min_rows_extends_the_collect_phase() -> None:
    module = head(min_rows=20, queue_size=30)
    phases = []
    for i in range(12):
        low_only = i < 7
        first, second = labeled(i), unlabeled(i)
        if low_only:  # no confident pixel: the high groups stay empty
            first = fresh(first, logits=0.2 * first.logits)
            second = fresh(second, weak_logits=0.0 * second.weak_logits)
        phases.append(module(first, second).phase)
    assert phases[:8] == [Phase.WARMUP] + [Phase.COLLECT] * 7
    assert phases[-1] is Phase.LEARN
    assert all(module.bank.present)


def test_max_collect_bounds_it() -> None:
    module = head(min_rows=200, queue_size=300, max_collect=5)
    phases = [step(module, seed=0, absent=())[0].phase for _ in range(8)]
    assert phases == [Phase.WARMUP] + [Phase.COLLECT] * 5 + [Phase.LEARN] * 2


def test_min_rows_waits_only_for_classes_seen() -> None:
    module = run(head(min_rows=5), 8, absent=(2,))
    assert module.phase is Phase.LEARN
    assert module.bank.present == [True, True, False]


def test_min_rows_waits_for_the_first_class() -> None:
    """Before a label was seen, "every class seen" would be none."""
    module = head(min_rows=5)
    for i in range(6):
        out = module(fresh(labeled(i), labels=torch.full((2, 17, 21), 255)), None)
    assert out.phase is Phase.COLLECT


def test_min_rows_that_no_queue_can_hold_is_refused() -> None:
    """The collect phase would never end."""
    with pytest.raises(ValueError, match=r"schedule\.min_rows: expected .*, found 31"):
        head(min_rows=31, queue_size=30)
    head(min_rows=30, queue_size=30)


def test_a_class_never_seen_does_not_hold_back_and_may_come_late() -> None:
    module = run(head(num_classes=CLASSES + 1), 9, absent=(CLASSES,))
    assert module.bank.present == [True] * CLASSES + [False]
    assert module.settled
    assert module.queue.features.numel() == 0
    out, first, second = step(module)
    assert_sound(out, first, second)
    assert not module.settled, "a class has come"
    assert module.samples_weak_views
    run(module, 3)
    assert module.bank.present == [True] * (CLASSES + 1)
    assert module.settled


def test_where_looking_means_waiting_a_class_is_tried_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: what the device says is read every fifth call, and is five calls old."""
    replace_everywhere(monkeypatch, "on_host", lambda device: False)
    calls, copies = 0, []

    def read(self: LateReader, device: torch.device, values: Callable[[], Tensor]) -> Tensor | None:
        nonlocal calls
        calls += 1
        if calls % 5 != 1:
            return None
        copies.append(values().clone())
        return copies[-2] if len(copies) > 1 else None

    monkeypatch.setattr(LateReader, "read", read)
    module = run(head(), 6, absent=(2,))
    assert module.settled
    run(module, 20, absent=(2,))
    sampled = int(module.sampler.draws)
    module(fresh(labeled(0), logits=None), unlabeled(0))  # shows class 2, cannot be sampled
    assert module.settled, "which nobody knows yet"
    looked = 0
    for i in range(20):
        looked += not module.settled
        first, second = labeled(10 * i), unlabeled(10 * i)
        if i < 12:  # the class is there, and nobody predicts it
            assert first.logits is not None
            logits = first.logits.clone()
            logits[:, 2] = -99
            first, second = fresh(first, logits=logits), unlabeled(10 * i, absent=(2,))
        module(first, second)
    assert 1 <= looked <= 3
    assert int(module.sampler.draws) - sampled <= 3, "the others were no more than the learn step"
    run(module, 20)
    assert module.bank.present == [True, True, True]
    assert module.settled
    assert module.iteration == 67
