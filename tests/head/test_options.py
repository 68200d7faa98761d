"""What settings change, and what metrics and warnings say."""

from __future__ import annotations

import warnings

import pytest
import torch
from builders import (
    MAP,
    assert_sound,
    centers,
    fresh,
    head,
    labeled,
    learning_head,
    run,
    step,
    unlabeled,
)
from torch.testing import assert_close

from brpg_lib import Phase

pytestmark = pytest.mark.usefixtures("everywhere")


@pytest.mark.parametrize(
    ("calls", "clustered"),
    [
        (list(range(4, 20)), [4, 9, 14, 19]),
        ([i for i in range(4, 20) for _ in range(3)], [4, 9, 14, 19]),  # gradients of several batches are added up
        (list(range(4, 30, 2)), [4, 10, 14, 20, 24]),
        ([4, 5, 17, 18, 18, 30], [4, 17, 30]),
    ],
)
def test_reclustering_once_a_period_whatever_the_count(calls: list[int], clustered: list[int]) -> None:
    module = head(recluster_every=5)
    for i in range(4):
        module(labeled(10 * i), unlabeled(10 * i))
    found = []
    for iteration in calls:
        before = module.bank.mask._version
        module(labeled(10 * iteration), unlabeled(10 * iteration), iteration=iteration)
        if module.bank.mask._version != before:
            found.append(iteration)
    assert found == clustered


def test_reclustering_at_its_time() -> None:
    module = run(head(recluster_every=3), 5)
    replaced = []
    for i in range(5, 15):
        vectors, mask = module.bank.prototypes.clone(), module.bank.mask.clone()
        module.bank.set(1000 + vectors, mask)
        step(module)
        if module.bank.prototypes.abs().max() < 100:
            replaced.append(i)
        else:
            module.bank.set(vectors, mask)
    assert replaced == [7, 10, 13]  # 4 is the first step of the learn phase


def test_reclustering_keeps_the_queues() -> None:
    module = run(head(recluster_every=3, queue_size=2000), 4)
    collected = module.queue.rows.clone()
    step(module)
    assert torch.equal(module.queue.rows, collected)
    step(module)
    assert (module.queue.rows > collected).all()


def test_reclustering_keeps_the_prototypes_of_a_class_without_rows() -> None:
    module = run(head(recluster_every=1, momentum=1.0), 5)
    before = module.bank.prototypes[2].clone()
    module.queue.reset()
    step(module, absent=(2,))
    assert module.bank.present == [True, True, True]
    assert torch.equal(module.bank.prototypes[2], before)


def test_pooled_confidence() -> None:
    module = learning_head(separate_confidence=False)
    assert module.bank.mask.sum(2).tolist() == [[4, 0]] * 3
    out, *batches = step(module)
    assert_sound(out, *batches)
    assert out.metrics["accuracy_labeled"] > 0.85
    assert int(out.metrics["rows_low"]) == 0


def test_class_adaptive_thresholds_move_from_the_collect_phase_on() -> None:
    module = head(class_adaptive=(0.0, 1.0), adaptive_momentum=0.5)
    initial = module.sampler.thresholds.clone()
    run(module, 1)
    assert torch.equal(module.sampler.thresholds, initial)
    run(module, 1)
    assert not (module.sampler.thresholds == initial).any()


def test_prototypes_are_the_centroids_of_the_queue() -> None:
    for centroid in ("mean", "confidence"):
        module = run(head(centroid=centroid, momentum=1.0), 4)
        wanted = module.splitter(module.queue).num_prototypes
        expected = module.clusterer(module.queue, wanted)
        step(module)
        assert torch.equal(module.bank.mask, expected.mask)
        assert_close(module.bank.prototypes, expected.vectors)
        assert torch.equal(module.bank.mask.sum(2), wanted)
    assert int(wanted.sum()) == 14, "one class of each group is split"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_queues_are_nearly_as_good(dtype: torch.dtype) -> None:
    exact, half = learning_head(), learning_head(queue_dtype=dtype)
    assert (half.bank.similarity(centers := exact.bank.prototypes[:, 0, 0]).argmax(1) == torch.arange(3)).all()
    assert step(half)[0].loss.item() == pytest.approx(step(exact)[0].loss.item(), rel=0.1)
    assert centers.dtype == torch.float32


def test_metrics_are_numbers_of_their_own() -> None:
    """Somebody may add up in them."""
    for out in (step(head())[0], step(learning_head())[0]):
        before = {name: value.clone() for name, value in out.metrics.items()}
        out.metrics["points_labeled"] += 5
        assert out.loss_unlabeled == 0 or out.phase is Phase.LEARN
        for name, value in out.metrics.items():
            assert name == "points_labeled" or torch.equal(value, before[name])
            assert value.untyped_storage().nbytes() <= 64, name


def test_metrics_tell_collapsed_prototypes_and_one_warning_does() -> None:
    module = learning_head()
    out, *_ = step(module)
    assert out.metrics["within_class_similarity"] < 0.999
    assert out.metrics["prototypes_collapsed"] == 0
    module.bank.set(module.bank.prototypes[:, :1, :1].expand_as(module.bank.prototypes).clone(), module.bank.mask)
    with pytest.warns(UserWarning, match=r"\d+ of \d+ prototypes have collapsed"):
        out, *_ = step(module)
    assert out.metrics["within_class_similarity"] > 0.99
    assert out.metrics["prototypes_used"] < 0.5
    assert out.metrics["prototypes_collapsed"] == module.bank.mask.sum() - 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(module)


def test_classes_without_rows_are_named_once() -> None:
    """The labels show class 2, but no pixel of it is ever predicted right."""
    module = head(warmup=0, collect=2)

    def step(seed: int) -> None:
        first, second = labeled(seed), unlabeled(seed)
        worst = first.logits.clone()
        worst[:, 2] = -9
        module(fresh(first, logits=worst), fresh(second, confidence=0 * second.confidence, weak_logits=0 * worst))

    step(0)
    step(1)
    with pytest.warns(UserWarning, match=r"classes without prototypes \(2\).*rare_class_fallback") as told:
        step(2)
    assert [w.filename for w in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(3)


def test_metrics_tell_dead_prototypes_and_one_warning_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that no point is near; those of a class without points are not dead."""
    monkeypatch.setattr("brpg_lib.learn.diagnostics.DEAD_AFTER", 20)
    module = learning_head(momentum=1.0)
    batch = labeled(0, image=MAP, size=MAP, ignored=0.0)
    batch = fresh(
        batch, features=centers()[batch.labels].movedim(3, 1), labels=batch.labels.where(batch.labels != 2, 255)
    )
    exists = torch.zeros_like(module.bank.mask)
    exists[:, 0, :2] = True
    module.bank.set(torch.stack((centers(), -centers()), dim=1)[:, None].expand(-1, 2, -1, -1), exists[:, :, :2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(19):
            assert module(batch).metrics["prototypes_dead"] == 0
    with pytest.warns(UserWarning, match=r"2 of 6 prototypes are dead: for 20 steps") as caught:
        out, _ = module(batch), module(batch)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert out.metrics["prototypes_dead"] == 2
    assert module.idle[:, 0, :2].tolist() == [[0, 21], [0, 21], [0, 0]]
    resumed = head(momentum=1.0)
    resumed.load_state_dict(module.state_dict())
    assert torch.equal(resumed.idle, module.idle)


def test_a_new_clustering_revives() -> None:
    module = learning_head(recluster_every=4)
    module.idle.fill_(7)
    run(module, 4)
    assert module.idle.max() < 4
