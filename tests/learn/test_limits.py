"""Which pseudo labels are reliable."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from builders import CLASSES, head, labeled, learning_head, run, unlabeled
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from brpg_lib.learn.limits import BINS, FEWEST, HIGHEST, LOOKED_AT, MEMORY, ClassLimits

pytestmark = pytest.mark.usefixtures("everywhere")


def shown(*confidences: Tensor) -> tuple[Tensor, Tensor]:
    """One row of pixels of classes 0, 1, ..."""
    classes = torch.cat([torch.full((len(values),), index) for index, values in enumerate(confidences)])
    return classes.view(1, 1, -1), torch.cat(confidences).view(1, 1, -1)


def followed(limits: ClassLimits, classes: Tensor, confidence: Tensor) -> Tensor:
    limits.follow(limits.counts(classes, confidence))
    return limits()


@given(
    share=st.floats(0.05, 1.0), counts=st.lists(st.integers(0, 300), min_size=1, max_size=4), seed=st.integers(0, 99)
)
def test_the_share_of_each_class_is_kept(share: float, counts: list[int], seed: int) -> None:
    """By sorting, to the width of a bin; what is hardly seen, and what is almost certain, is not held back."""
    random = torch.Generator().manual_seed(seed)
    confidences = [torch.rand(count, generator=random) for count in counts]
    found = followed(ClassLimits(len(counts), share), *shown(*confidences)).tolist()
    for limit, values in zip(found, confidences, strict=True):
        if len(values) < FEWEST:
            assert limit == 0
            continue
        kept = values.sort(descending=True).values[: math.ceil(share * len(values) - 1e-4)]
        assert limit <= HIGHEST + 1e-6
        assert min(float(kept[-1]), HIGHEST) - 1 / BINS - 1e-5 <= limit <= float(kept[-1]) + 1e-5


def test_limits_follow_slowly_and_a_class_that_is_absent_stays() -> None:
    limits = ClassLimits(2, 0.5)
    followed(limits, *shown(torch.full((50,), 0.805), torch.full((50,), 0.405)))
    found = followed(limits, *shown(torch.full((50,), 0.305)))
    assert_close(found, torch.tensor([MEMORY * 0.8 + (1 - MEMORY) * 0.3, 0.4]))
    assert_close(ClassLimits(2, 0.5)(torch.tensor(0.7)), torch.tensor([0.7, 0.7]), msg="not seen yet")
    twin = ClassLimits(2, 0.5)
    twin.load_state_dict(limits.state_dict())
    assert torch.equal(twin(), found)


def test_a_class_without_confidence_has_been_seen_all_the_same() -> None:
    found = followed(ClassLimits(2, 0.5), *shown(torch.zeros(50)))
    assert 0 < found[0] < 1 / BINS


def test_counts_of_processes_add_up() -> None:
    limits = ClassLimits(3, 0.5)
    classes, confidence = torch.randint(3, (4, 9, 9)), torch.rand(4, 9, 9)
    classes[0, 0] = 255
    both = limits.counts(classes, confidence)
    assert both.sum() == 4 * 81 - 9
    assert torch.equal(both, limits.counts(classes[:1], confidence[:1]) + limits.counts(classes[1:], confidence[1:]))


def test_of_large_images_some_rows_and_columns_are_looked_at() -> None:
    side = 3 * LOOKED_AT + 5
    counts = ClassLimits(1, 0.5).counts(torch.zeros(1, side, 2 * side).long(), torch.rand(1, side, 2 * side))
    assert counts.sum() == math.ceil(side / 3) * math.ceil(2 * side / 3)


def test_without_a_share_there_are_no_limits() -> None:
    limits = ClassLimits(2, None)
    counts = limits.counts(*shown(torch.rand(50)))
    assert len(counts) == limits.num_counts == 0
    limits.follow(counts)
    assert not limits.values.any()
    assert limits(torch.tensor(0.7)) == torch.tensor(0.7)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan, "half", True])
def test_a_wrong_share_is_refused(share: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="share: expected"):
        ClassLimits(2, share)


# --- In the head ------------------------------------------------------------------------------------------------------


def test_points_are_the_pixels_above_the_limits_of_the_steps_before() -> None:
    module = learning_head(pseudo_label_share=0.3, unlabeled_samples_per_image=10**6)
    assert (module.limits.values > 0).all()
    twin = ClassLimits(CLASSES, 0.3)
    twin.load_state_dict(module.limits.state_dict())
    for seed in range(3):
        batch = unlabeled(seed)
        out = module(labeled(seed), batch)
        expected = (batch.confidence >= twin()[batch.pseudo_labels]).sum()
        assert out.metrics["points_unlabeled"] == expected
        assert_close(out.metrics["pseudo_threshold"], twin().mean())
        assert torch.equal(module.limits(), followed(twin, batch.pseudo_labels, batch.confidence))


def test_before_a_class_is_seen_the_schedule_holds() -> None:
    module = learning_head(pseudo_label_share=0.3, unlabeled_samples_per_image=10**6)
    module.limits.values.zero_()
    batch = unlabeled(3)
    out = module(labeled(3), batch)
    threshold = module.schedule.pseudo_threshold(5)
    assert out.metrics["points_unlabeled"] == (batch.confidence >= threshold).sum()


def test_limits_stay_in_eval_mode_and_without_unlabeled_images() -> None:
    module = learning_head(pseudo_label_share=0.3)
    before = module.limits.values.clone()
    module(labeled(7))
    module.eval()(labeled(7), unlabeled(7))
    assert torch.equal(module.limits.values, before)


def test_without_a_share_nothing_is_kept() -> None:
    assert not run(head(), 7).limits.values.any()
