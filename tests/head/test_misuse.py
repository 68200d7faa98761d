"""Mistakes that would go on for hours without a word are told of once, early, and with what to do."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import fresh, head, labeled, run, state, unlabeled
from torch import Tensor, nn

from brpg_lib import BRPGConfig, LabeledBatch, PrototypeHead, UnlabeledBatch
from brpg_lib.misuse import are_stretched
from brpg_lib.notices import LateReader

Change = Callable[[LabeledBatch, UnlabeledBatch], tuple[LabeledBatch, UnlabeledBatch]]


def told(steps: int, change: Change = lambda *batches: batches, module: PrototypeHead | None = None) -> list[str]:
    """The warnings of a training on changed batches, as trainers write it."""
    module = head() if module is None else module
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(steps):
            loss = module(*change(labeled(10 * (i % 5)), unlabeled(10 * (i % 5)))).loss
            if loss.requires_grad:
                loss.backward()
    return [str(warning.message) for warning in caught]


def put(batch: Any, **values: Any) -> Any:
    return fresh(batch, **values)


def detached(first: LabeledBatch, second: UnlabeledBatch) -> tuple[LabeledBatch, UnlabeledBatch]:
    first, second = fresh(first), fresh(second)
    for batch in (first, second):
        batch.features.requires_grad_(False)
    return first, second


def probabilities(first: LabeledBatch, second: UnlabeledBatch) -> tuple[LabeledBatch, UnlabeledBatch]:
    assert first.logits is not None
    assert second.weak_logits is not None
    return put(first, logits=first.logits.softmax(1)), put(second, weak_logits=second.weak_logits.softmax(1))


MISTAKES: dict[str, tuple[Change, list[str]]] = {
    "features.detach()": (detached, ["features carry no gradient"]),
    "probabilities": (
        probabilities,
        ["labeled.logits look like probabilities", "unlabeled.weak_logits look like probabilities"],
    ),
    "0/1 confidence": (
        lambda first, second: (first, put(second, confidence=(second.confidence > 0.5).float())),
        ["unlabeled.confidence holds only 0 and 1"],
    ),
    "half precision probabilities": (
        lambda first, second: (put(first, logits=torch.softmax(first.logits.half(), 1)), second),  # type: ignore[union-attr]
        ["labeled.logits look like probabilities"],
    ),
    "another aspect ratio": (
        lambda first, second: (put(first, labels=first.labels[:, :, :10]), second),
        ["labeled: features of 9 x 11 and labels of 17 x 10 pixels differ in shape"],
    ),
    "another aspect ratio of pseudo labels": (
        lambda first, second: (
            first,
            put(second, pseudo_labels=second.pseudo_labels[:, :7], confidence=second.confidence[:, :7]),
        ),
        ["unlabeled: features of 9 x 11 and labels of 7 x 21 pixels differ in shape"],
    ),
    "nothing wrong": (lambda *batches: batches, []),
    "labeled images only": (lambda first, second: (first, None), []),  # type: ignore[return-value]
    "the labeled features alone have gradients": (lambda first, second: (first, detached(first, second)[1]), []),
}


@pytest.mark.parametrize(("change", "expected"), MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("steps", [1, 60])
def test_batches(change: Change, expected: list[str], steps: int) -> None:
    found = told(steps, change)
    if steps == 60:  # what follows from it may be told too
        found = [text for text in found if any(text.startswith(start) for start in expected) or not expected]
    assert len(found) == len(expected), found
    for text, start in zip(found, expected, strict=True):
        assert text.startswith(start)


def test_logits_that_will_be_missing_are_told_of_at_once() -> None:
    without: Change = lambda first, second: (put(first, logits=None), second)  # noqa: E731
    (text,) = told(1, without, head(warmup=5))
    assert text.startswith("labeled.logits is None; the collect phase, 5 iterations from now, needs")
    assert told(1, without, head(warmup=5, collect=0)) == []
    assert told(3, without, run(head(), 6)) == []


def test_a_head_that_never_trains() -> None:
    (text,) = told(60, module=head().eval())
    assert "called 50 times in eval mode" in text
    assert "Call head.train()" in text
    with torch.no_grad():
        assert told(60, module=head().eval()) == []
    assert told(60, module=run(head(), 1).eval()) == []


def alternating(first: int, change: Change, steps: int, module: PrototypeHead) -> list[str]:
    """The warnings of a training whose steps have labeled and unlabeled images in turn, beginning with one kind."""

    def one_kind(own: LabeledBatch, others: UnlabeledBatch) -> Any:
        nonlocal first
        first = 1 - first
        return (change(own, others)[0], None) if first else (None, change(own, others)[1])

    return told(steps, one_kind, module)


@pytest.mark.parametrize("first", [0, 1])
def test_steps_with_one_kind_of_images_are_looked_at_too(first: int) -> None:
    for change, (own, others) in (
        (probabilities, ("labeled.logits look like prob", "unlabeled.weak_logits look like prob")),
        (lambda one, two: (MISTAKES["another aspect ratio"][0](one, two)[0], two), ("labeled: features of", "")),
        (lambda one, two: (put(one, logits=None), two), ("labeled.logits is None; the collect phase", "")),
    ):
        found = alternating(first, change, 4, head(warmup=9))
        assert sorted(text[: len(own)] for text in found if text.startswith(own)) == [own]
        assert len([text for text in found if others and text.startswith(others)]) == bool(others)
        assert len(found) == 1 + bool(others)
    assert alternating(first, lambda *batches: batches, 4, head(warmup=9)) == []
    assert alternating(first, lambda one, two: (one, detached(one, two)[1]), 4, head(warmup=9))[first:] == []


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("every", [1, 5])
def test_points_that_never_come_where_kinds_of_steps_alternate(
    first: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as on CUDA, where every n-th step is looked at, n steps later."""
    copies: list[Tensor] = []

    def read(self: LateReader, device: torch.device, values: Callable[[], Tensor]) -> Tensor | None:
        self._calls += 1
        if self._calls % every:
            return None
        copies.append(values().clone())
        return copies[-2] if len(copies) > 1 else None

    def unsure(own: LabeledBatch, others: UnlabeledBatch) -> tuple[LabeledBatch, UnlabeledBatch]:
        return own, put(others, confidence=0 * others.confidence)

    if every > 1:
        monkeypatch.setattr(LateReader, "read", read)
        monkeypatch.setattr(LateReader, "steps", lambda self, device: every)
    assert alternating(first, lambda *batches: batches, 130, run(head(), 6)) == []
    copies.clear()
    (text,) = alternating(first, unsure, 130, run(head(), 6))
    assert text.startswith("no unlabeled point in")


def test_an_iteration_that_begins_anew_in_each_epoch() -> None:
    module = head(warmup=10, total=100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            for i in range(8):
                module(labeled(10 * i), unlabeled(10 * i), iteration=i).loss.backward()
    (text,) = [str(warning.message) for warning in caught]
    assert text.startswith("iteration went back from 7 to 0")
    assert "epoch * len(loader) + i" in text


@pytest.mark.parametrize("steps", [5, 12])
def test_an_iteration_that_goes_back_with_the_state_or_stays_is_right(steps: int) -> None:
    module = head()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(steps):
            if i == 3:
                saved = state(module)
            for _ in range(2):
                module(labeled(10 * i), unlabeled(10 * i), iteration=i).loss.backward()
        module.load_state_dict(saved)
        module(labeled(30), unlabeled(30), iteration=3).loss.backward()
        module.eval()(labeled(30), unlabeled(30), iteration=0)
        module.reset()
        module.train()(labeled(), unlabeled(), iteration=0).loss.backward()


def test_a_new_head_that_begins_after_its_collect_phase() -> None:
    """As it is where a training is resumed without the head's state, and the trainer gives its own count."""
    module = head(warmup=1, collect=3, total=400)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(200, 280):
            module(labeled(10 * (i % 5)), unlabeled(10 * (i % 5)), iteration=i).loss.backward()
    (text,) = [str(warning.message) for warning in caught]
    assert text.startswith("a head that holds nothing begins at iteration 200, after its collect phase (1 to 4)")
    assert "load head.state_dict() of the checkpoint" in text
    assert module.bank.present == [True] * 3


def test_a_schedule_that_counts_other_steps_than_the_checkpoint() -> None:
    """As where the number of processes has changed, and with it the steps of an epoch."""
    longer, shorter = {"warmup": 20, "collect": 20, "total": 400}, {"warmup": 2, "collect": 2, "total": 40}
    trained, waiting, collecting = run(head(**shorter), 8), run(head(**longer), 8), run(head(**longer), 25)
    assert told(3, module=loaded(trained, longer)) == [
        "a head with prototypes goes on at iteration 8 in its warmup phase: its loss is 0 until iteration 40. The "
        "Schedule is not that of the checkpoint, or counts other steps, such as those of another number of processes"
    ]
    (text,) = told(3, module=loaded(waiting, shorter))
    assert text.startswith("a head that holds nothing begins at iteration 8, after its collect phase (2 to 4)")
    assert text.endswith("such as those of another number of processes")
    assert told(3, module=loaded(collecting, shorter)) == []
    assert told(3, module=loaded(trained, shorter)) == []


def loaded(module: PrototypeHead, schedule: dict[str, int]) -> PrototypeHead:
    other = head(**schedule)
    other.load_state_dict(state(module))
    return other


def test_a_schedule_without_a_collect_phase_has_no_end_of_it_to_miss() -> None:
    module = head(warmup=0, collect=0, total=400)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(1, 20):  # trainers count from 1 too
            module(labeled(10 * (i % 5)), unlabeled(10 * (i % 5)), iteration=i).loss.backward()


def test_a_model_resumed_from_a_state_without_the_head() -> None:
    model = nn.ModuleDict({"net": nn.Conv2d(1, 1, 1), "head": head()})
    old = {name: value for name, value in model.state_dict().items() if name.startswith("net")}
    with pytest.warns(UserWarning, match="holds nothing of the head 'head', which begins with nothing"):
        model.load_state_dict(old, strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(model.state_dict(), strict=False)
        model["head"].load_state_dict({}, strict=False)


def test_labels_of_one_class() -> None:
    """Masks of 0 and 255: one class is shown, the other one is ignored."""

    def zero_or_ignored(first: LabeledBatch, second: UnlabeledBatch) -> tuple[LabeledBatch, UnlabeledBatch]:
        labels = torch.where(first.labels == 0, 0, 255)
        logits = 9 * nn.functional.one_hot(torch.zeros(2, 9, 11, dtype=torch.long), 3).movedim(3, 1).float()
        return put(first, labels=labels, logits=logits), put(second, weak_features=None, weak_logits=None)

    found = told(8, zero_or_ignored)
    assert any("of 3 classes the labels have shown class 0 only" in text for text in found)


def test_one_class_is_no_problem_to_solve() -> None:
    with pytest.warns(UserWarning, match="num_classes=1 has a loss of 0"):
        PrototypeHead(1, 4, head().schedule)


def test_a_class_that_has_the_default_index_of_ignored_pixels() -> None:
    with pytest.warns(UserWarning, match="class 255 of 300 gets no prototypes: it has the index of ignored pixels"):
        PrototypeHead(300, 4, head().schedule, BRPGConfig(queue_size=5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PrototypeHead(255, 4, head().schedule, BRPGConfig(queue_size=5))
        PrototypeHead(300, 4, head().schedule, BRPGConfig(queue_size=5, ignore_index=65535))
        PrototypeHead(3, 4, head().schedule, BRPGConfig(queue_size=5, ignore_index=0))


def test_steps_without_points() -> None:
    def unsure(first: LabeledBatch, second: UnlabeledBatch) -> tuple[LabeledBatch, UnlabeledBatch]:
        return first, put(second, confidence=0.7 * second.confidence)

    (text,) = told(80, unsure)
    assert text.startswith("no unlabeled point in 50 steps: no pseudo label has a confidence")
    module = run(head(), 6)
    nowhere: Change = lambda first, second: (put(first, labels=torch.full_like(first.labels, 255)), None)  # type: ignore[assignment,return-value]  # noqa: E731
    (text,) = told(80, nowhere, module)
    assert text.startswith("no labeled point in 50 steps")


def test_features_that_are_not_finite() -> None:
    def broken(first: LabeledBatch, second: UnlabeledBatch) -> tuple[LabeledBatch, UnlabeledBatch]:
        features = first.features.detach().clone()
        features[0, 0, :4] = torch.nan
        return put(first, features=features), second

    found = [text for text in told(10, broken) if "left out" in text]
    assert len(found) == 1
    assert "features or logits are not finite" in found[0]


def test_copies_look_for_themselves() -> None:
    module = head()
    told(3, module=module)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin._first_calls.trained == 0
    before = state(module)
    assert "first" not in str(before.keys())


@pytest.mark.parametrize(
    ("size", "image", "expected"),
    [
        ((65, 129), (513, 1025), False),
        ((97, 97), (769, 769), False),
        ((33, 41), (321, 401), False),
        ((41, 51), (321, 401), False),
        ((1, 1), (7, 900), False),
        ((60, 80), (480, 640), False),
        ((60, 60), (480, 640), True),
        ((17, 17), (17, 17), False),
        ((17, 17), (17, 23), True),
    ],
)
def test_shapes(size: tuple[int, int], image: tuple[int, int], expected: bool) -> None:
    assert are_stretched(size, image) is expected
