"""A head that does nothing says so, once, and what to do."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from builders import fresh, head, labeled, unlabeled

from brpg_lib import LabeledBatch, UnlabeledBatch

pytestmark = pytest.mark.usefixtures("everywhere")


def said(batches: tuple[LabeledBatch, UnlabeledBatch], steps: int = 120, **options: object) -> list[str]:
    """The warnings of a training of equal steps."""
    module = head(**options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            module(*(fresh(batch) for batch in batches)).loss.backward()
    return [str(warning.message) for warning in caught]


def hopeless() -> tuple[LabeledBatch, UnlabeledBatch]:
    """Every class is in the labels, and nobody predicts it, or is sure of anything."""
    first, second = labeled(0), unlabeled(0)
    assert first.logits is not None
    assert second.weak_logits is not None
    return fresh(first, logits=-99 * first.logits.sign()), fresh(second, weak_logits=0 * second.weak_logits)


def test_labels_without_a_class() -> None:
    first, second = labeled(0), unlabeled(0)
    nowhere = fresh(first, labels=torch.full_like(first.labels, 255))
    assert second.weak_logits is not None
    (text,) = said((nowhere, fresh(second, weak_logits=0 * second.weak_logits)))
    assert re.search(r"no queue has a row: the loss stays 0\. The labels have shown none of the classes 0\.\.2", text)
    assert "masks of 0 and 255" in text


def test_predictions_that_are_never_right() -> None:
    first, second = hopeless()
    assert first.logits is not None
    (text,) = said((fresh(first, logits=wrong(first.labels, first.logits)), second))
    assert "Of the classes 0, 1, 2 in the labels no labeled pixel was predicted right" in text
    assert "confidence of 0.8" in text


def wrong(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Logits that are sure of the class after the right one."""
    small = torch.nn.functional.interpolate(labels[:, None].float(), logits.shape[2:], mode="nearest")[:, 0].long()
    other = (small.clamp(max=logits.shape[1] - 1) + 1) % logits.shape[1]
    return 9.0 * torch.nn.functional.one_hot(other, logits.shape[1]).movedim(3, 1)


def test_a_collect_phase_without_an_end() -> None:
    first, second = labeled(0), unlabeled(0)
    assert first.logits is not None
    assert second.weak_logits is not None
    logits, others = first.logits.clone(), second.weak_logits.clone()
    logits[:, 2], others[:, 2] = -99, -99
    (text,) = said((fresh(first, logits=logits), fresh(second, weak_logits=others)), min_rows=5)
    assert "the collect phase goes on, and the loss stays 0, until every class in the labels has 5 rows" in text
    assert re.search(r"fewer have, with their rows: 2 \(0\)\. Schedule\(max_collect=\.\.\.\) sets an end", text)


def test_a_class_that_comes_late_and_is_never_predicted() -> None:
    module, texts = head(), list[list[str]]()
    never = torch.tensor([0.0, 0.0, -99.0])[:, None, None]
    for absent in ((2,), ()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for i in range(120):
                first, second = (make(10 * (i % 5), absent=absent) for make in (labeled, unlabeled))
                assert first.logits is not None
                assert second.weak_logits is not None
                first = fresh(first, logits=first.logits + never)
                module(first, fresh(second, weak_logits=second.weak_logits + never)).loss.backward()
        texts.append([str(warning.message) for warning in caught])
    assert module.bank.present == [True, True, False]
    before, (after,) = texts
    assert before == []
    assert after.startswith("the labels show classes without prototypes (2)")


def test_a_class_that_is_missing_from_the_start_is_told_of_once() -> None:
    first, second = labeled(0), unlabeled(0)
    assert first.logits is not None
    assert second.weak_logits is not None
    never = torch.tensor([0.0, 0.0, -99.0])[:, None, None]
    (text,) = said((fresh(first, logits=first.logits + never), fresh(second, weak_logits=second.weak_logits + never)))
    assert text.startswith("the labels show classes without prototypes (2)")


def test_a_head_that_works_says_nothing() -> None:
    assert said((labeled(0), unlabeled(0)), steps=60) == []


def test_nothing_is_said_before_there_was_time() -> None:
    assert said(hopeless(), steps=50) == []
