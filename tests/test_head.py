"""The whole method as one module."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from builders import (
    CLASSES,
    DIM,
    MAP,
    centers,
    fresh,
    gradients,
    head,
    labeled,
    learning_head,
    run,
    same,
    state,
    step,
    unlabeled,
)
from fake_cuda import NoCopies, fake_cuda, needs_fake_cuda
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.testing import assert_close

from brpg_lib import BRPGConfig, HeadOutput, LabeledBatch, Phase, PrototypeHead, Schedule, UnlabeledBatch
from brpg_lib.checkpoint import unpack

METRICS = {
    "points_labeled", "points_unlabeled", "accuracy_labeled", "accuracy_unlabeled", "prototypes_used", "loss_labeled",
    "loss_unlabeled", "pseudo_threshold", "prototypes", "within_class_similarity", "rows_high", "rows_low", "dropped",
    "prototypes_collapsed", "prototypes_dead",
}  # fmt: skip


def set_prototypes(head: PrototypeHead, seed: int = 0, share: float = 1.1) -> None:
    """Random prototypes, of which the share exists."""
    random = torch.Generator().manual_seed(seed)
    shape = head.bank.prototypes.shape
    head.bank.set(torch.randn(shape, generator=random), torch.rand(shape[:3], generator=random) < share)


def assert_sound(out: HeadOutput, *batches: LabeledBatch | UnlabeledBatch | None) -> None:
    """Finite loss, gradients and metrics."""
    for value in (out.loss, out.loss_labeled, out.loss_unlabeled):
        assert value.isfinite()
        assert value.dtype == torch.float32
        assert value.shape == ()
    assert out.metrics.keys() == METRICS
    for name, value in out.metrics.items():
        assert value.shape == (), name
        assert value.isfinite(), name
        assert not value.requires_grad, name
    for gradient in gradients(out, *batches):
        assert gradient.isfinite().all()


# --- One learn step ---------------------------------------------------------------------------------------------------

SIDE = st.integers(1, 20)
SMALL = st.integers(1, 7)


@given(
    images=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    image=st.tuples(SIDE, SIDE),
    sizes=st.tuples(SMALL, SMALL),
    other=st.tuples(SIDE, SIDE),
    classes=st.integers(1, 4),
    dim=st.integers(2, 5),
    grid=st.integers(1, 6),
    share=st.sampled_from([0.4, 1.1]),
    iteration=st.integers(0, 120),
    align_corners=st.booleans(),
    weight=st.sampled_from([0.0, 1.0, 2.5]),
    temperature=st.sampled_from([0.07, 0.5]),
    momentum=st.sampled_from([0.0, 0.9, 0.99]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_learn_step_equals_the_reference(
    images, image, sizes, other, classes, dim, grid, share, iteration, align_corners, weight, temperature, momentum,
    dtype, seed,
):  # fmt: skip
    config = BRPGConfig(
        grid_size=grid,
        unlabeled_samples_per_image=10**6,
        temperature=temperature,
        momentum=momentum,
        misclassified_weight=weight,
        align_corners=align_corners,
        loss_weight=0.5,
    )
    module = head(
        classes, dim, config=config, warmup=0, collect=0, total=100, ramp_start=20, extrapolate_threshold=True
    )
    set_prototypes(module, seed, share)
    options = {"num_classes": classes, "dim": dim}
    first = labeled(seed, num_images=images[0], image=image, size=sizes, **options)
    first = fresh(first, features=first.features.detach().to(dtype), logits=None)
    second = unlabeled(seed, num_images=images[1], image=other, size=sizes, **options)
    second = fresh(second, features=second.features.detach().to(dtype), confidence=second.confidence.to(dtype))
    before, mask = module.bank.prototypes.clone(), module.bank.mask.clone()
    out = module(first, second, iteration=iteration)
    expected = reference.learn_step(
        first.features,
        first.labels,
        second.features,
        second.pseudo_labels,
        second.confidence,
        before,
        mask,
        iteration=min(iteration, 100),
        ramp_start=20,
        total=100,
        grid=grid,
        temperature=temperature,
        momentum=momentum,
        misclassified_weight=weight,
        align_corners=align_corners,
    )
    assert_sound(out, first, second)
    assert out.loss_labeled.item() == pytest.approx(expected["loss_labeled"], rel=1e-4, abs=1e-5)
    assert out.loss_unlabeled.item() == pytest.approx(expected["loss_unlabeled"], rel=1e-4, abs=1e-5)
    assert out.loss.item() == pytest.approx(0.5 * expected["loss"], rel=1e-4, abs=1e-5)
    assert int(out.metrics["points_unlabeled"]) == expected["num_pseudo"]
    assert out.metrics["pseudo_threshold"].item() == pytest.approx(expected["threshold_now"])
    found = torch.cat([g.double().flatten() for g in gradients(out, first, second)])
    tolerance = 1e-3 if dtype == torch.float32 else 0.1  # gradients of many points add up in the precision of the map
    exact = 0.5 * expected["grad"].flatten()
    assert (found - exact).norm() <= tolerance * exact.norm() + 1e-5
    assert_close(module.bank.prototypes.double(), expected["prototypes_after"], atol=1e-4, rtol=1e-4)
    assert torch.equal(module.bank.mask, mask)


def test_the_cap_of_unlabeled_points() -> None:
    module = head(unlabeled_samples_per_image=7, warmup=0, collect=0)
    set_prototypes(module)
    out = module(fresh(labeled(), logits=None), unlabeled(num_images=3))
    assert int(out.metrics["points_unlabeled"]) == 21


def test_other_points_every_iteration_and_the_same_again() -> None:
    def loss(iteration: int, seed: int = 0) -> float:
        module = head(unlabeled_samples_per_image=7, seed=seed)
        set_prototypes(module)
        return module(fresh(labeled(), logits=None), unlabeled(), iteration=iteration).loss_unlabeled.item()

    assert loss(10) == loss(10)
    assert len({loss(10), loss(11), loss(12)}) == 3
    assert loss(10) != loss(10, seed=1)


# --- Phases -----------------------------------------------------------------------------------------------------------


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


# --- What a batch may be ----------------------------------------------------------------------------------------------

Batches = tuple[LabeledBatch, UnlabeledBatch | None]


def somewhere(value: float, where: slice | None = None) -> Callable[[Batches], Batches]:
    """Put a value into some features of every map (all of them without `where`)."""

    def change(batches: Batches) -> Batches:
        first, second = batches
        columns = slice(None) if where is None else where
        changed = [b.clone().detach() for b in (first.features, second.features, second.weak_features)]
        for features in changed:
            features[:, :, :, columns] = value
        return fresh(first, features=changed[0]), fresh(second, features=changed[1], weak_features=changed[2])

    return change


def converted(dtype: torch.dtype) -> Callable[[Batches], Batches]:
    def change(batches: Batches) -> Batches:
        first, second = (
            fresh(b, **{k: v.detach().to(dtype) for k, v in vars(b).items() if v is not None and v.is_floating_point()})
            for b in batches
        )
        return first, second

    return change


def layout(batches: Batches) -> Batches:
    def strided(tensor: Tensor) -> Tensor:
        return tensor.detach().mT.contiguous().mT

    first, second = (fresh(b, **{k: strided(v) for k, v in vars(b).items() if v is not None}) for b in batches)
    for batch in (first, second):
        assert not batch.features.is_contiguous()
    return first, second


def only_class(index: int) -> Callable[[Batches], Batches]:
    def change(batches: Batches) -> Batches:
        first, second = batches
        labels = torch.full_like(first.labels, index)
        logits = torch.zeros_like(second.weak_logits)
        logits[:, index] = 5
        return fresh(first, labels=labels), fresh(second, pseudo_labels=labels, weak_logits=logits)

    return change


def labels_as(dtype: torch.dtype) -> Callable[[Batches], Batches]:
    return lambda b: (
        fresh(b[0], labels=b[0].labels.to(dtype)),
        fresh(b[1], pseudo_labels=b[1].pseudo_labels.to(dtype)),
    )


CASES: dict[str, Callable[[Batches], Batches]] = {
    "supervised step": lambda b: (b[0], None),
    "no weak view": lambda b: (b[0], fresh(b[1], weak_features=None, weak_logits=None)),
    "all labels ignored": lambda b: (fresh(b[0], labels=torch.full_like(b[0].labels, 255)), b[1]),
    "all ignored": lambda b: (
        fresh(b[0], labels=torch.full_like(b[0].labels, 255)),
        fresh(b[1], pseudo_labels=torch.full_like(b[1].pseudo_labels, 255), weak_features=None, weak_logits=None),
    ),
    "no confident pseudo label": lambda b: (
        b[0],
        fresh(b[1], confidence=0.0 * b[1].confidence, weak_logits=0.0 * b[1].weak_logits),
    ),
    "one class only": only_class(1),
    "half precision": converted(torch.float16),
    "bfloat16": converted(torch.bfloat16),
    "float64": converted(torch.float64),
    "not contiguous": layout,
    "channels last": lambda b: (
        fresh(b[0], features=b[0].features.detach().contiguous(memory_format=torch.channels_last)),
        fresh(b[1], features=b[1].features.detach().contiguous(memory_format=torch.channels_last)),
    ),
    "some zero features": somewhere(0.0, slice(0, 3)),
    "all zero features": somewhere(0.0),
    "equal features": somewhere(1.5),
    "some nan features": somewhere(torch.nan, slice(0, 3)),
    "all nan features": somewhere(torch.nan),
    "some inf features": somewhere(torch.inf, slice(0, 3)),
    "some huge features": somewhere(1e30, slice(0, 3)),
    "all huge features": somewhere(1e30),
    "all large features": somewhere(1e14),
    "all tiny features": somewhere(1e-30),
    "nan logits": lambda b: (fresh(b[0], logits=b[0].logits * torch.nan), fresh(b[1], weak_logits=b[1].weak_logits * torch.nan)),  # noqa: E501
    "uint8 labels": labels_as(torch.uint8),
    "int32 labels": labels_as(torch.int32),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("when", ["always", "once learning"])
def test_every_batch_is_survived(name: str, when: str, device: torch.device) -> None:
    module = head().to(device)
    for i in range(8):
        batches: Batches = (labeled(10 * i), unlabeled(10 * i))
        if when == "always" or i > 4:
            batches = CASES[name](batches)
        first, second = (b if b is None else fresh(b, **move(b, device)) for b in batches)
        out = module(first, second)
        assert_sound(out, first, second)
        assert module.bank.prototypes.isfinite().all()
        assert module.queue.features.isfinite().all()
    if when == "always" and ("nan" in name or "inf" in name or "huge" in name):
        assert out.metrics["dropped"] > 0, "nothing is lost silently"


def move(batch: LabeledBatch | UnlabeledBatch, device: torch.device) -> dict[str, Tensor]:
    return {name: value.detach().to(device) for name, value in vars(batch).items() if value is not None}


SHAPES: dict[str, dict[str, Any]] = {
    "one class": {"num_classes": 1},
    "one channel": {"dim": 1},
    "one of both": {"num_classes": 1, "dim": 1},
    "batch of one": {"num_images": 1},
    "square": {"image": (16, 16), "size": (8, 8)},
    "wide": {"image": (3, 40), "size": (2, 10)},
    "tall": {"image": (40, 3), "size": (10, 2)},
    "smaller than the grid": {"image": (4, 3), "size": (4, 3)},
    "one pixel": {"image": (1, 1), "size": (1, 1)},
    "one pixel of features": {"image": (9, 9), "size": (1, 1)},
    "features larger than the image": {"image": (5, 6), "size": (9, 11)},
    "many classes": {"num_classes": 30},
}


def test_the_weights_of_both_losses() -> None:
    module = learning_head(labeled_weight=0.25, unlabeled_weight=3.0, loss_weight=0.5)
    out, *_ = step(module)
    torch.testing.assert_close(out.loss, 0.5 * (0.25 * out.loss_labeled + 3.0 * out.loss_unlabeled))
    assert out.loss_unlabeled > 0


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_survived(name: str) -> None:
    options = SHAPES[name]
    module = head(options.get("num_classes", CLASSES), options.get("dim", DIM))
    for i in range(8):
        first, second = labeled(10 * i, **options), unlabeled(10 * i, **options)
        assert_sound(module(first, second), first, second)


@pytest.mark.parametrize("options", [{"num_prototypes": (1, 1)}, {"num_prototypes": (1, 1), "split_fraction": 0.0},
                                     {"num_prototypes": (7, 2)}, {"split_increment": 4}, {"grid_size": 1},
                                     {"queue_size": 1}, {"queue_size": 3}, {"samples_per_image": 1},
                                     {"momentum": 0.0}, {"momentum": 1.0}, {"misclassified_weight": 0.0},
                                     {"point_balance": 1.0}, {"pseudo_label_share": 0.5},
                                     {"loss_weight": 0.0}, {"split_fraction": 1.0}, {"temperature": 0.001},
                                     {"align_corners": False}, {"dispersion": "l2"}, {"class_balance": 0.5},
                                     {"confidence_threshold": 1.0}, {"queue_dtype": torch.float16},
                                     {"queue_dtype": torch.bfloat16, "queue_device": "cpu"}])  # fmt: skip
def test_every_setting_is_survived(options: dict[str, Any]) -> None:
    module = head(**options)
    for _ in range(8):
        out, *batches = step(module)
        assert_sound(out, *batches)
    assert all(module.bank.present)


def test_views_of_different_sizes() -> None:
    module = head()
    for i in range(8):
        first = labeled(i, num_images=3, image=(13, 8), size=(5, 4))
        second = unlabeled(i, num_images=2, image=(17, 21), size=(6, 8), weak_images=4, weak_size=(3, 9))
        assert_sound(module(first, second), first, second)
    assert out_rows(module) > 0


def out_rows(module: PrototypeHead) -> int:
    return int(module.queue.rows.sum()) or int(module.bank.mask.sum())


@pytest.mark.parametrize("ignore_index", [-1, 254, 1000])
def test_ignore_index(ignore_index: int) -> None:
    module, usual = head(ignore_index=ignore_index), head()
    for i in range(7):
        batches = [labeled(i, ignore_index=index) for index in (ignore_index, 255)]
        losses = [m(batch, unlabeled(i)).loss for m, batch in zip((module, usual), batches, strict=True)]
        assert torch.equal(*losses)


def test_a_broken_pixel_counts_once() -> None:
    """Also where it would have gone to two queues."""
    module = head(rare_class_fallback=True, warmup=0)
    first = labeled(0, ignored=0.0)
    broken = first.features.detach().clone()
    broken[0, 1, 2, 3], broken[1, :, 4, 4] = torch.nan, torch.inf
    out = module(fresh(first, features=broken))
    assert out.metrics["dropped"] == 2
    assert module.queue.dropped == 0


def test_nan_features_are_counted_and_the_rest_is_as_without_them() -> None:
    module = learning_head()
    first, second = labeled(7, ignored=0.0, image=(9, 11)), unlabeled(7, image=(9, 11))
    broken = first.features.detach().clone()
    broken[0, 2, 0, 0] = torch.nan  # a grid point
    other = fresh(first, features=broken)
    hidden = first.labels.clone()
    hidden[0, 0, 0] = 255
    twin = learning_head()
    before = int(module.dropped)
    out, expected = module(other, second), twin(fresh(first, labels=hidden), second)
    assert torch.equal(out.loss, expected.loss)
    assert int(out.metrics["dropped"]) == before + 1
    assert torch.equal(module.bank.prototypes, twin.bank.prototypes)
    gradient = torch.autograd.grad(out.loss, other.features)[0]
    assert gradient.isfinite().all()
    assert (gradient[0, :, 0, 0] == 0).all()


# --- Classes that come late, or hardly at all -------------------------------------------------------------------------


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


def test_weak_views_are_wanted_while_a_class_is_awaited() -> None:
    module = run(head(), 6, absent=(2,))
    assert not module.samples_weak_views
    module(fresh(labeled(0), logits=None), unlabeled(0))  # shows class 2, cannot be sampled
    assert module.samples_weak_views
    run(module, 2)
    assert all(module.bank.present)
    assert not module.samples_weak_views


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


# --- Options ----------------------------------------------------------------------------------------------------------


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
    with pytest.warns(UserWarning, match=r"classes 2 are in the labels, but have no row.*rare_class_fallback") as told:
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


# --- Bad input --------------------------------------------------------------------------------------------------------


def poke(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.detach().clone()
    changed[0, 1, 2] = value
    return changed


def wrong_batches() -> dict[str, tuple[str, Callable[[], tuple[Any, Any]]]]:
    """Name -> (start of the message, how to make the batches)."""
    meta = {"features": torch.zeros(2, DIM, 9, 11, device="meta"), "logits": torch.zeros(2, 3, 9, 11, device="meta")}
    labels = torch.zeros(2, 17, 21, dtype=torch.int64)
    return {
        "no batch": (r"labeled: expected a LabeledBatch, found dict", lambda: ({}, None)),
        "no unlabeled batch": (r"unlabeled: expected an UnlabeledBatch", lambda: (labeled(), labeled())),
        "other D": (r"labeled\.features: expected 5 channels", lambda: (labeled(dim=7), unlabeled())),
        "other D, unlabeled": (r"unlabeled\.features: expected 5 channels", lambda: (labeled(), unlabeled(dim=7))),
        "other C": (r"labeled\.logits: expected 3 channels", lambda: (labeled(num_classes=2), unlabeled())),
        "other C, weak": (
            r"unlabeled\.weak_logits: expected 3 channels",
            lambda: (labeled(), unlabeled(num_classes=2)),
        ),
        "label too large": (
            r"labeled\.labels: expected classes 0\.\.2 or ignore_index 255, found 1",
            lambda: (fresh(labeled(), labels=poke(labels, 3)), unlabeled()),
        ),
        "negative label": (
            r"labeled\.labels: expected classes",
            lambda: (fresh(labeled(), labels=poke(labels, -1)), unlabeled()),
        ),
        "pseudo label too large": (
            r"unlabeled\.pseudo_labels: expected classes",
            lambda: (labeled(), fresh(unlabeled(), pseudo_labels=poke(labels, 254))),
        ),
        "nan confidence": (
            r"unlabeled\.confidence: expected values in \[0, 1\]",
            lambda: (labeled(), fresh(unlabeled(), confidence=poke(unlabeled().confidence, torch.nan))),
        ),
        "other device": (
            r"labeled\.features: expected a tensor on cpu, like the module, found meta",
            lambda: (LabeledBatch(**meta, labels=labels.to("meta")), unlabeled()),
        ),
        "other sizes": (
            r"labeled\.labels: expected an integer tensor",
            lambda: (fresh(labeled(), labels=labels[:1]), unlabeled()),
        ),
        "float labels": (r"labeled\.labels: expected", lambda: (fresh(labeled(), labels=labels.float()), unlabeled())),
        "integer features": (
            r"labeled\.features: expected a floating-point",
            lambda: (dataclasses.replace(labeled(), features=torch.zeros(2, DIM, 9, 11).long()), unlabeled()),
        ),
    }


@pytest.mark.parametrize("name", wrong_batches())
@pytest.mark.parametrize("steps", [0, 2, 4, 6])
def test_bad_input_is_refused_and_changes_nothing(name: str, steps: int) -> None:
    module = run(head(class_adaptive=(0.3, 0.9), recluster_every=2), steps)
    before = state(module)
    message, make = wrong_batches()[name]
    with pytest.raises((TypeError, ValueError), match=f"^({message})"):
        module(*make())
    assert same(state(module), before)
    step(module)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 2.0}, "num_classes"),
        ({"feature_dim": 0}, "feature_dim"),
        ({"schedule": None}, "schedule"),
        ({"config": {}}, "config"),
        ({"config": BRPGConfig(ignore_index=2)}, r"config\.ignore_index"),
        ({"config": BRPGConfig(fixed_threshold_classes=(3,))}, "fixed_threshold_classes"),
        ({"queue_dtype": torch.float64}, "queue_dtype"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "0"}, "seed"),
    ],
)
def test_bad_arguments(change: dict[str, Any], field: str) -> None:
    arguments = {"num_classes": 3, "feature_dim": 4, "schedule": Schedule(warmup=0, collect=1, total=2)} | change
    with pytest.raises((TypeError, ValueError), match=f"^{field}: expected .+, found "):
        PrototypeHead(**arguments)


def test_no_parameters() -> None:
    module = head()
    assert not list(module.parameters())
    assert "num_classes=3" in repr(module)


# --- CUDA -------------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_cuda_follows_the_cpu() -> None:
    module, other = head(), head().cuda()
    for i in range(9):
        first, second = labeled(10 * i), unlabeled(10 * i)
        out = module(first, second)
        there = other(
            fresh(first, **move(first, torch.device("cuda"))), fresh(second, **move(second, torch.device("cuda")))
        )
        assert there.loss.item() == pytest.approx(out.loss.item(), rel=1e-3)
        assert {value.device.type for value in there.metrics.values()} == {"cuda"}
    assert_close(other.bank.prototypes.cpu(), module.bank.prototypes, atol=1e-3, rtol=1e-3)


@pytest.mark.cuda
def test_the_learn_step_does_not_wait_for_the_device() -> None:
    module = learning_head().cuda()
    first, second = on(torch.device("cuda"), labeled(), unlabeled())
    module(first, second)
    assert module.settled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(first, second).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_the_learn_step_as_a_cuda_graph() -> None:
    module, twin = learning_head().cuda(), learning_head().cuda()
    first, second = on(torch.device("cuda"), labeled(), unlabeled())
    for _ in range(3):  # warm-up, on a side stream as torch.cuda.graph asks for
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.autograd.grad(module(first, second).loss, (first.features, second.features))
            twin(first, second)
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(first, second)
        gradient = torch.autograd.grad(out.loss, (first.features, second.features))
    for _ in range(4):
        graph.replay()
        expected = twin(first, second)
        assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-4)
        wanted = torch.autograd.grad(expected.loss, (first.features, second.features))
        for one, two in zip(gradient, wanted, strict=True):
            assert_close(one, two, atol=1e-6, rtol=1e-3)
        assert_close(module.bank.prototypes, twin.bank.prototypes, atol=1e-5, rtol=1e-4)
    assert module.iteration == twin.iteration, "replays count"


# --- What the learn step may not do -----------------------------------------------------------------------------------


def on(device: torch.device, *batches: Any) -> list[Any]:
    return [fresh(batch, **move(batch, device)) for batch in batches]


@needs_fake_cuda
def test_no_decision_of_the_learn_step_depends_on_values() -> None:
    with fake_cuda() as device:
        module = PrototypeHead(3, 5, Schedule(warmup=0, collect=0, total=9), BRPGConfig(unlabeled_samples_per_image=9))
        module.to(device)
        module.timeline._settled_with = module.bank.mask_version

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=device)

        first = LabeledBatch(features=empty(2, 5, 9, 11), logits=None, labels=empty(2, 17, 21, dtype=torch.int64))
        second = UnlabeledBatch(
            features=empty(2, 5, 9, 11), pseudo_labels=empty(2, 17, 21, dtype=torch.int64), confidence=empty(2, 17, 21)
        )
        with NoCopies():
            out = module(first, second)
        assert out.loss.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            out.loss.item()


def test_settled_once_every_class_has_prototypes(device: torch.device) -> None:
    module = head().to(device)
    for i in range(7):
        assert module.settled == (i > 4)
        assert module.iteration == i
        module(*on(device, labeled(10 * i), unlabeled(10 * i)))
    module.bank.mask[0] = False
    assert not module.settled
    assert module.iteration == 7
    module(*on(device, labeled(70), unlabeled(70)))
    assert module.iteration == 8
    again = head(recluster_every=3).to(device)
    for i in range(7):
        again(*on(device, labeled(10 * i), unlabeled(10 * i)))
    assert not again.settled


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_learn_step_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    module, twin = learning_head().to(device), learning_head().to(device)
    for part in (module, twin):
        part(*on(device, labeled(50), unlabeled(50)))
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    for i in range(6, 9):
        batches, others = (on(device, labeled(10 * i), unlabeled(10 * i)) for _ in range(2))
        out, expected = compiled(*batches), twin(*others)
        assert_close(out.loss, expected.loss, atol=1e-5, rtol=1e-5)
        for one, two in zip(gradients(out, *batches), gradients(expected, *others), strict=True):
            assert_close(one, two, atol=1e-6, rtol=1e-4)
        assert_close(module.bank.prototypes, twin.bank.prototypes, atol=1e-5, rtol=1e-5)
        assert module.iteration == twin.iteration == i + 1
    torch._dynamo.reset()


def test_compiled_from_the_first_step() -> None:
    """Without fullgraph: the phases before the learn step run as they are."""
    module, twin = head(), head()
    compiled = torch.compile(module, backend="aot_eager")
    for i in range(8):
        batches, others = (on(torch.device("cpu"), labeled(10 * i), unlabeled(10 * i)) for _ in range(2))
        out, expected = compiled(*batches), twin(*others)
        assert out.phase is expected.phase
        assert_close(out.loss, expected.loss)
    assert same(state(module), state(twin))
    torch._dynamo.reset()


def test_deterministic_algorithms_repeat_everything(device: torch.device) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        losses = []
        for _ in range(2):
            module = head().to(device)
            for i in range(8):
                batches = on(device, labeled(10 * i), unlabeled(10 * i))
                out = module(*batches)
                gradient = gradients(out, *batches)
            losses.append((out.loss, *gradient, module.bank.prototypes))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, two) for one, two in zip(*losses, strict=True))
