"""What a head does when, and what does not matter to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from builders import (
    assert_sound,
    fresh,
    gradients,
    head,
    labeled,
    run,
    same,
    state,
    step,
    unlabeled,
)
from torch.testing import assert_close

from brpg_lib import Phase
from brpg_lib.checkpoint import unpack

pytestmark = pytest.mark.usefixtures("everywhere")


def test_phases_and_losses() -> None:
    module = head()
    for i in range(12):
        assert module.iteration == i
        expected = Phase.WARMUP if i < 1 else Phase.COLLECT if i < 4 else Phase.LEARN
        assert module.phase is expected
        out, *batches = step(module)
        assert out.phase is expected
        assert_sound(out, *batches)
        if expected is Phase.LEARN:
            assert out.loss_labeled > 0
            assert out.loss_unlabeled > 0
            assert_close(out.loss, out.loss_labeled + out.loss_unlabeled)
        else:
            assert out.loss == 0
            assert all((g == 0).all() for g in gradients(out, *batches)), "in the graph, without effect"
        assert bool(module.bank.mask.any()) == (i >= 4)
    assert out.metrics["accuracy_labeled"] > 0.85, "the classes are well apart"


def test_warm_up_needs_no_logits_and_changes_nothing_but_the_count() -> None:
    module = head(warmup=2)
    before = state(module)
    module(fresh(labeled(), logits=None), fresh(unlabeled(), weak_features=None, weak_logits=None))
    after = state(module)
    assert unpack(after.pop("_extra_state"))["iteration"] == unpack(before.pop("_extra_state"))["iteration"] + 1
    assert same(before, after)


def test_collect_needs_logits() -> None:
    module = run(head(), 1)
    with pytest.raises(ValueError, match=r"labeled\.logits: expected logits \(B, C, h, w\) in the collect phase"):
        module(fresh(labeled(), logits=None))
    module.eval()
    module(fresh(labeled(), logits=None))


def test_the_trainers_own_count() -> None:
    module = head()
    assert module(labeled(), unlabeled(), iteration=2).phase is Phase.COLLECT
    assert module.iteration == 3
    assert module(labeled(), unlabeled()).phase is Phase.COLLECT
    assert module(labeled(), unlabeled(), iteration=30).phase is Phase.LEARN
    assert module.iteration == 31
    assert module(labeled(), unlabeled(), iteration=0).phase is Phase.WARMUP
    assert module.iteration == 1


@pytest.mark.parametrize("wrong", [-1, 1.5, "3", True, torch.tensor(3)])
def test_a_wrong_count(wrong: Any) -> None:
    module = head()
    with pytest.raises((TypeError, ValueError), match="iteration: expected an integer >= 0, found"):
        module(labeled(), unlabeled(), iteration=wrong)
    assert module.iteration == 0


def test_without_collecting_the_classes_join_in_the_learn_phase() -> None:
    module = head(warmup=0, collect=0)
    out, *_ = step(module)
    assert out.phase is Phase.LEARN
    assert not any(module.bank.present), "which classes there are is known from the next step on"
    step(module)
    assert all(module.bank.present)


@pytest.mark.parametrize("steps", [0, 2, 4, 7])
def test_eval_changes_nothing(steps: int) -> None:
    module = run(head(class_adaptive=(0.3, 0.9)), steps)
    before = state(module)
    module.eval()
    with torch.inference_mode():
        first = module(labeled(5), unlabeled(5))
    second = module(labeled(5), unlabeled(5))
    module(labeled(6), None, iteration=50)
    assert same(state(module), before)
    assert torch.equal(first.loss, second.loss)
    assert first.phase is module.phase
    run(module.train(), 3)  # what ran in inference mode is no obstacle
    assert module.iteration == steps + 3


def test_gradients_are_not_needed() -> None:
    with_gradient, without = head(), head()
    for _ in range(7):
        out, *_ = step(with_gradient)
        seed = 10 * without.iteration
        first, second = labeled(seed), unlabeled(seed)
        first = dataclasses.replace(first, features=first.features.detach())
        if without.iteration % 2:
            with torch.no_grad():
                other = without(first, second)
        else:
            other = without(first, dataclasses.replace(second, features=second.features.detach()))
        assert not other.loss.requires_grad
        assert torch.equal(out.loss, other.loss)
    assert same(state(with_gradient), state(without))


def test_the_same_seed_the_same_training() -> None:
    torch.manual_seed(0)
    first = run(head(samples_per_image=20, seed=3), 9)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    second = run(head(samples_per_image=20, seed=3), 9)
    assert torch.equal(before, torch.get_rng_state()), "the global generator is the trainer's"
    assert same(state(first), state(second))
    assert not same(state(first), state(run(head(samples_per_image=20, seed=4), 9)))


def test_deterministic_algorithms() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        module = head(samples_per_image=20, class_adaptive=(0.1, 0.9), rare_class_fallback=True, recluster_every=2)
        for _ in range(9):
            out, *batches = step(module)
            assert_sound(out, *batches)
    finally:
        torch.use_deterministic_algorithms(False)


def test_autocast_around_the_head_does_not_matter() -> None:
    plain, other = head(), head()
    for i in range(8):
        expected, *batches = step(plain)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, *others = step(other)
        assert torch.equal(out.loss, expected.loss)
        assert same(out.metrics, expected.metrics)
        assert same(gradients(out, *others)[0], gradients(expected, *batches)[0]), i
    assert same(state(plain), state(other))
