"""The kernels of the steps against plain torch: interpreted where there is no GPU, on it where there is one."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from builders import fresh, gradients, head, labeled, set_prototypes, state, unlabeled
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from packages import needs_triton
from torch import Tensor
from torch.testing import assert_close

from brpg_lib import (
    BRPGConfig,
    ConfidenceSampler,
    FeatureQueue,
    LabeledBatch,
    PrototypeBank,
    PrototypeContrastiveLoss,
    UnlabeledBatch,
)
from brpg_lib.collect.step import collect
from brpg_lib.kernels import fused
from brpg_lib.kernels.random import fold, uniform
from brpg_lib.learn import diagnostics
from brpg_lib.learn.step import Measured, follow, measure
from brpg_lib.ranks.exchange import StepSums

pytestmark = [
    needs_triton,
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),  # on the side of a where that is not taken
]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if torch.cuda.is_available():
    pytestmark.append(pytest.mark.cuda)


def with_kernels(patch: pytest.MonkeyPatch, use: bool) -> None:
    """Take the kernels, or leave them."""

    def kernels_for(*_: Any) -> ModuleType | None:
        return fused.load() if use else None

    patch.setattr(fused, "kernels_for", kernels_for)


def both_ways(call: Any) -> list[Any]:
    """What a function returns with plain torch, and with the kernels."""
    found = []
    for use in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            with_kernels(patch, use)
            found.append(call())
    return found


def alike(one: Tensor, other: Tensor, text: str = "") -> None:
    assert_close(other, one, atol=1e-5, rtol=1e-5, msg=lambda message: f"{text}: {message}")


@given(
    seed=st.integers(0, 999),
    now=st.integers(0, 2**31),
    own=st.tuples(st.integers(0, 2**40), st.integers(0, 9)),
    length=st.sampled_from([1, 100, 1500]),
    dtypes=st.tuples(
        st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]),
        st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    ),
    per_class=st.booleans(),
)
def test_scores_are_the_same_numbers(seed, now, own, length, dtypes, per_class):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (length,), generator=random).to(dtypes[0]).to(DEVICE)
    confidence = torch.rand(length, generator=random).to(dtypes[1]).to(DEVICE)
    threshold = torch.rand(4 if per_class else (), generator=random).to(DEVICE)
    key = (torch.tensor(now, device=DEVICE), *own)
    limit = threshold[labels.long().clamp(max=3)] if per_class else threshold
    confident = (confidence >= limit) & (labels < 4)
    expected = torch.where(confident, uniform((length,), fold(*key)), -1.0)
    assert torch.equal(fused.load().scores(labels, confidence, threshold, key, 4), expected)


def filled_bank(classes: int, dim: int, seed: int, config: BRPGConfig, missing: bool) -> PrototypeBank:
    bank = PrototypeBank(classes, dim, **config.arguments_of(PrototypeBank))
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(bank.mask.shape, generator=random) > 0.3
    mask[:, 0, 0] = True
    if missing:
        mask[-1] = False
    bank.set(torch.randn(bank.prototypes.shape, generator=random), mask)
    return bank.to(DEVICE)


@settings(phases=[Phase.explicit, Phase.generate])  # interpreted kernels are too slow to look for a smaller example
@given(
    seed=st.integers(0, 999),
    classes=st.integers(1, 5),
    dim=st.sampled_from([1, 3, 16, 33]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    image=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    kind=st.sampled_from(["both", "labeled only", "apart"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    channels_last=st.booleans(),
    broken=st.sampled_from([None, 0.0, float("nan"), float("inf"), 3e20]),
    options=st.fixed_dictionaries(
        {
            "align_corners": st.booleans(),
            "misclassified_weight": st.sampled_from([0.0, 1.0, 2.5]),
            "temperature": st.sampled_from([0.1, 1.0]),
            "grid_size": st.sampled_from([1, 4, 40]),
            "unlabeled_samples_per_image": st.sampled_from([1, 20, 5000]),
            "num_prototypes": st.sampled_from([(2, 2), (1, 1), (3, 1)]),
        }
    ),
    per_class=st.booleans(),
)
def test_a_step_measures_the_same(
    seed, classes, dim, size, image, kind, dtype, channels_last, broken, options, per_class
):
    config = BRPGConfig(split_fraction=0.0, **options)
    made = {"num_classes": classes, "dim": dim, "image": image, "size": size}
    first, second = labeled(seed, **made, ignored=0.2), unlabeled(seed, **made)
    bank = filled_bank(classes, dim, seed, config, missing=classes > 1 and seed % 2 == 0)
    criterion = PrototypeContrastiveLoss(**config.arguments_of(PrototypeContrastiveLoss))
    threshold = torch.full((classes,) if per_class else (), 0.4, device=DEVICE)
    nothing = {"shown": torch.zeros(classes, device=DEVICE), "confidence": torch.zeros(0, device=DEVICE)}

    def maps(batch: Any) -> Tensor:
        values = batch.features.detach().clone()
        if broken is not None:
            values[0, :, 0, 0] = broken
        values = values.to(dtype).to(DEVICE)
        values = values.contiguous(memory_format=torch.channels_last) if channels_last else values
        return values.requires_grad_()

    def call() -> tuple[Measured, list[Tensor]]:
        one = fresh(first.to(DEVICE), features=maps(first))
        two = None if kind == "labeled only" else fresh(second.to(DEVICE), features=maps(second))
        draw = (torch.tensor(seed, device=DEVICE), 7, 0)
        found = measure(one, two, threshold, draw, bank, criterion, config, **nothing)
        weight = torch.linspace(0.5, 1.5, classes, device=DEVICE)
        loss = (found.terms[..., 0] * weight).sum()
        leaves = [one.features] if two is None else [one.features, two.features]
        return found, [*torch.autograd.grad(loss, leaves)]

    (plain, wanted), (found, given_) = both_ways(call)
    for name, one, other in zip(StepSums._fields, plain.sums, found.sums, strict=True):
        if name in ("hits", "pull") and not torch.equal(plain.sums.hits, found.sums.hits):
            # A point as near to two prototypes of its class may go to either.
            alike(plain.sums.hits.sum(), found.sums.hits.sum(), name)
            continue
        assert_close(other, one, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert_close(found.terms, plain.terms, atol=1e-4, rtol=1e-4)
    for one, other in zip(wanted, given_, strict=True):
        assert other.dtype == one.dtype
        assert other.is_contiguous() or not one.is_contiguous()
        exact = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 1e-2}
        if dim == 1:  # the gradient is 0 but for rounding: a number has no direction to turn to
            exact = {"atol": 1e-3, "rtol": 0.0}
        assert_close(other, one, **exact)


@given(seed=st.integers(0, 999), classes=st.integers(1, 9), dim=st.sampled_from([1, 5, 64]), seldom=st.booleans())
def test_prototypes_move_and_look_the_same(seed, classes, dim, seldom):
    config = BRPGConfig()
    random = torch.Generator().manual_seed(seed)
    total = StepSums.nothing(classes, 6 * classes, dim, 0, torch.device("cpu"))
    hits = torch.randint(0, 2 if seldom else 5, total.hits.shape, generator=random).float()
    pull = torch.randn(total.pull.shape, generator=random)
    pull[:, -1] = hits
    total = total._replace(hits=hits.to(DEVICE), pull=pull.to(DEVICE))

    def call() -> list[Tensor]:
        bank = filled_bank(classes, dim, seed, config, missing=False)
        bank.prototypes[:, :, 1:2] = bank.prototypes[:, :, :1]  # collapsed
        idle = torch.full(bank.mask.shape, diagnostics.DEAD_AFTER - 1, device=DEVICE)
        used = follow(bank, idle, total)
        looks = diagnostics.health(bank, idle)
        return [bank.prototypes, idle, used, *(looks[name].float() for name in sorted(looks))]

    plain, found = both_ways(call)
    for one, other in zip(plain, found, strict=True):
        alike(one, other)


def test_a_training_goes_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """From warm-up to the learn phase, with losses, gradients, metrics and the state of both."""
    twins = [head(pseudo_label_share=0.5).to(DEVICE) for _ in range(2)]
    for i in range(9):
        outs = []
        for module, use in zip(twins, (False, True), strict=True):
            with_kernels(monkeypatch, use)
            batches = [fresh(batch.to(DEVICE)) for batch in (labeled(10 * i), unlabeled(10 * i))]
            out = module(*batches)
            outs.append((out, gradients(out, *batches)))
        (plain, wanted), (found, given_) = outs
        alike(plain.loss, found.loss)
        for one, other in zip(wanted, given_, strict=True):
            alike(one, other)
        assert plain.metrics.keys() == found.metrics.keys()
        for name in plain.metrics:
            alike(plain.metrics[name], found.metrics[name], name)
    states = [state(module) for module in twins]
    for name, value in states[0].items():
        if isinstance(value, Tensor):
            alike(value.float(), states[1][name].float(), name)


def test_metrics_share_no_memory_with_what_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernels(monkeypatch, True)
    module = head().to(DEVICE)
    for i in range(6):
        out = module(*(fresh(batch.to(DEVICE)) for batch in (labeled(10 * i), unlabeled(10 * i))))
    before = {name: float(value) for name, value in out.metrics.items()}
    module(*(fresh(batch.to(DEVICE)) for batch in (labeled(99), unlabeled(99))))
    assert {name: float(value) for name, value in out.metrics.items()} == before


@pytest.mark.parametrize(("device", "deterministic"), [("cpu", False), ("cuda", True)])
def test_where_plain_torch_has_to_do(device: str, deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_works", lambda device: True)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    assert fused.kernels_for(torch.device(device), 256, 21, 6) is None
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    assert fused.kernels_for(torch.device("cuda"), 256, 21, 6) is fused.load()
    for sizes in ((2048, 21, 6), (256, 5000, 6), (1024, 21, 40)):
        assert fused.kernels_for(torch.device("cuda"), *sizes) is None


def test_a_second_derivative_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernels(monkeypatch, True)
    first, second = labeled().to(DEVICE), unlabeled().to(DEVICE)
    module = head(warmup=0, collect=0).to(DEVICE)
    set_prototypes(module)
    out = module(fresh(first, logits=None), second)
    with pytest.raises(RuntimeError, match=r"create_graph=True .* torch\.use_deterministic_algorithms\(True\)"):
        torch.autograd.grad(out.loss, second.features, create_graph=True)
    module(fresh(first, logits=None), fresh(second)).loss.backward()


def test_kernels_that_fail_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> None:
        raise OSError("no C compiler")

    fused._works.cache_clear()
    monkeypatch.setattr(fused.load(), "rehearse", fail)
    with pytest.warns(UserWarning, match="does without triton, which is installed but fails on cuda: no C compiler"):
        assert fused.kernels_for(torch.device("cuda"), 16, 3, 4) is None
    fused._works.cache_clear()


def test_a_batch_of_each_kind_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that are not contiguous, and as any integers."""
    with_kernels(monkeypatch, True)
    module, twin = head().to(DEVICE), head().to(DEVICE)
    for i in range(6):
        first, second = labeled(10 * i).to(DEVICE), unlabeled(10 * i).to(DEVICE)
        turned = LabeledBatch(
            features=first.features.detach(),
            logits=first.logits,
            labels=first.labels.mT.contiguous().mT.to(torch.uint8),
        )
        other = UnlabeledBatch(
            features=second.features.detach(),
            pseudo_labels=second.pseudo_labels.mT.contiguous().mT.int(),
            confidence=second.confidence.mT.contiguous().mT,
            weak_features=second.weak_features,
            weak_logits=second.weak_logits,
        )
        alike(twin(first, second).loss, module(turned, other).loss)


@settings(phases=[Phase.explicit, Phase.generate])
@given(
    seed=st.integers(0, 999),
    classes=st.integers(1, 5),
    dim=st.sampled_from([1, 3, 40]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    image=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    weak=st.none() | st.tuples(st.integers(1, 3), st.tuples(st.integers(1, 7), st.integers(1, 7)), st.booleans()),
    broken=st.sampled_from([None, float("nan"), float("inf"), 3e20, 7e4]),
    capacity=st.sampled_from([1, 5, 1000]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    options=st.fixed_dictionaries(
        {
            "samples_per_image": st.sampled_from([3, 5000]),
            "class_balance": st.sampled_from([None, 0.5]),
            "class_adaptive": st.sampled_from([None, (0.5, 0.9)]),
            "separate_confidence": st.booleans(),
            "confidence_floor": st.sampled_from([0.0, 0.4]),
        }
    ),
)
def test_queues_fill_the_same(seed, classes, dim, size, image, weak, broken, capacity, dtype, options):
    config = BRPGConfig(queue_size=capacity, **options)
    made = {"num_classes": classes, "dim": dim, "image": image, "size": size}
    batches = []
    for step in range(3):
        first, second = labeled(seed + step, **made, ignored=0.2), None
        if broken is not None:
            first.features.data[0, :, 0, 0] = broken
            first.logits[0, :, -1, -1] = broken
        if weak is not None:
            count, area, padded = weak
            second = unlabeled(seed + step, **made, weak_images=count, weak_size=area)
            if padded:
                shown = torch.rand(count, *image, generator=torch.Generator().manual_seed(seed)) > 0.3
                second = fresh(second, weak_valid=shown)
        batches.append([None if batch is None else batch.to(DEVICE) for batch in (first, second)])

    def call() -> tuple[FeatureQueue, list[int]]:
        queue = FeatureQueue(classes, dim, **config.arguments_of(FeatureQueue), dtype=dtype).to(DEVICE)
        sampler = ConfidenceSampler(classes, **config.arguments_of(ConfidenceSampler), seed=seed).to(DEVICE)
        return queue, [int(collect(sampler, queue, *pair, None)) for pair in batches]

    (plain, lost), (found, missing) = both_ways(call)
    assert lost == missing
    assert plain.dropped == found.dropped
    assert torch.equal(plain.rows, found.rows)
    assert torch.equal(plain.cursor, found.cursor)
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":  # the interpreter cuts off where a GPU rounds
        assert_close(found.features, plain.features, atol=0.0, rtol=2**-7)
    else:
        assert torch.equal(plain.features, found.features)
    assert_close(found.confidence, plain.confidence, atol=1e-6, rtol=1e-6)
