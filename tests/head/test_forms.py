"""Batches in the forms that networks and datasets have: the same training as with maps of one logit per class."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from builders import (
    MAP,
    fresh,
    gradients,
    head,
    labeled,
    run,
    same,
    set_prototypes,
    state,
    unlabeled,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from brpg_lib import LabeledBatch, ProjectionHead, PrototypeBank, PrototypeHead, UnlabeledBatch
from brpg_lib.learn.points import grid_of_volume

Pair = tuple[LabeledBatch | None, UnlabeledBatch | None]


def trained(
    module: PrototypeHead, form: Callable[[LabeledBatch, UnlabeledBatch], Pair], steps: int = 9, **sizes: Any
) -> tuple[PrototypeHead, list[Any]]:
    """A head after some steps on batches in a form, with losses, metrics and gradients of each."""
    found = []
    for i in range(steps):
        first, second = form(labeled(10 * i, **sizes), unlabeled(10 * i, **sizes))
        out = module(first, second)
        found.append((out.loss, out.metrics, gradients(out, first, second)))
    return module, found


def tokens(maps: Tensor, prefix: int) -> Tensor:
    """As a transformer gives them: ``(B, N, D)``, after class and register tokens."""
    rows = maps.detach().flatten(2).mT
    return torch.cat((torch.full_like(rows[:, :1], 99.0).expand(-1, prefix, -1), rows), dim=1)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens(prefix: int) -> None:
    def as_tokens(first: LabeledBatch, second: UnlabeledBatch) -> Pair:
        assert first.logits is not None
        assert second.weak_features is not None
        assert second.weak_logits is not None
        leaves = [tokens(batch.features, prefix).requires_grad_() for batch in (first, second)]
        batches = (
            LabeledBatch(
                features=leaves[0], logits=tokens(first.logits, prefix), labels=first.labels, grid=torch.Size(MAP)
            ),
            UnlabeledBatch(
                features=leaves[1],
                pseudo_labels=second.pseudo_labels,
                confidence=second.confidence,
                weak_features=tokens(second.weak_features, prefix),
                weak_logits=second.weak_logits,  # maps beside tokens: what a decoder gives
                grid=list(MAP),  # type: ignore[arg-type]
            ),
        )
        seen.append(leaves)
        return batches

    seen: list[list[Tensor]] = []
    plain, expected = trained(head(), lambda *batches: batches)
    module, found = trained(head(), as_tokens)
    assert same(state(module), state(plain))
    for (loss, metrics, own), (other_loss, other_metrics, others) in zip(found, expected, strict=True):
        assert same([loss, metrics], [other_loss, other_metrics])
        assert all(map(torch.equal, own, others))
    out = module(*as_tokens(labeled(1), unlabeled(1)))
    out.loss.backward()
    for leaf in seen[-1]:
        assert leaf.grad is not None
        assert (leaf.grad[:, :prefix] == 0).all()
        assert leaf.grad[:, prefix:].abs().sum() > 0
    batch = as_tokens(labeled(1), unlabeled(1))[0]
    assert batch is not None
    assert batch.to("cpu").features.shape == (2, 5, *MAP)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"features": torch.rand(2, 99, 5)},
            r"labeled\.features: expected .*for tokens \(B, N, D\), give .*grid=\(h, w\)",
        ),
        ({"features": torch.rand(2, 98, 5), "grid": MAP}, r"labeled\.features: expected at least 99 tokens"),
        ({"grid": (9,)}, r"labeled\.grid: expected \(h, w\)"),
        ({"grid": (9, 0)}, r"labeled\.grid: expected an integer >= 1"),
        ({"grid": "9x11"}, r"labeled\.grid: expected None or \(h, w\)"),
        (
            {"labels": torch.rand(2, 3, 17, 21)},
            r"labeled\.labels: expected an integer .*soft labels: take their argmax",
        ),
        ({"labels": torch.zeros(2, 2, 17, 21).long()}, r"labeled\.labels: expected an integer tensor \(2, H, W\)"),
    ],
)
def test_bad_forms(values: dict[str, Any], message: str) -> None:
    batch = labeled()
    given = {"features": batch.features, "labels": batch.labels} | values
    with pytest.raises((TypeError, ValueError), match=message):
        LabeledBatch(**given)


def test_the_one_logit_of_a_foreground() -> None:
    """And masks of it: bool, with a channel."""

    def binary(first: LabeledBatch, second: UnlabeledBatch) -> Pair:
        assert first.logits is not None
        assert second.weak_logits is not None
        return (
            fresh(first, logits=first.logits[:, 1:] - first.logits[:, :1], labels=(first.labels == 1)[:, None]),
            fresh(
                second,
                weak_logits=second.weak_logits[:, 1:] - second.weak_logits[:, :1],
                pseudo_labels=second.pseudo_labels[:, None],
                confidence=second.confidence[:, None],
            ),
        )

    plain, module = head(2), head(2)
    for i in range(9):
        first, second = labeled(10 * i, num_classes=2, ignored=0.0), unlabeled(10 * i, num_classes=2)
        out, other = plain(first, second), module(*binary(first, second))
        assert_close(other.loss, out.loss)
    for name, value in state(plain).items():
        assert_close(state(module)[name], value, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"labeled\.logits: expected 3 channels in dimension 1, one per class, found"):
        head()(fresh(labeled(), logits=torch.zeros(2, 1, *MAP)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32])
@pytest.mark.parametrize("channel", [False, True])
def test_labels_of_any_type_with_a_channel_or_without(dtype: torch.dtype, channel: bool) -> None:
    def changed(labels: Tensor) -> Tensor:
        return (labels[:, None] if channel else labels).to(dtype)

    plain, module = head(ignore_index=100), head(ignore_index=100)
    for i in range(7):
        first, second = labeled(i, ignore_index=100), unlabeled(i)
        out = plain(first, second)
        other = module(
            fresh(first, labels=changed(first.labels)), fresh(second, pseudo_labels=changed(second.pseudo_labels))
        )
        assert torch.equal(out.loss, other.loss)
    assert same(state(plain), state(module))


@pytest.mark.parametrize("ignored", [0, 1, 2, -1, -100, 1000])
def test_any_index_may_mean_ignored(ignored: int) -> None:
    """Also that of a class, which then has no prototypes: not even where the teacher predicts it."""

    plain, module = head(), head(ignore_index=ignored)
    for i in range(9):
        first, second = labeled(10 * i), unlabeled(10 * i)
        hidden = (
            first.labels.masked_fill(first.labels == ignored, 255),
            second.pseudo_labels.masked_fill(second.pseudo_labels == ignored, 255),
        )
        assert second.weak_logits is not None
        quiet = second.weak_logits.clone()
        if 0 <= ignored < 3:
            quiet[:, ignored] = -99.0
        out = plain(fresh(first, labels=hidden[0]), fresh(second, pseudo_labels=hidden[1], weak_logits=quiet))
        found = module(
            fresh(first, labels=torch.where(hidden[0] == 255, ignored, hidden[0])),
            fresh(second, pseudo_labels=torch.where(hidden[1] == 255, ignored, hidden[1]), weak_logits=quiet),
        )
        assert torch.equal(out.loss, found.loss)
    for name in ("bank.prototypes", "bank.mask", "queue.rows", "seen"):
        assert torch.equal(state(plain)[name], state(module)[name])
    predicted = head(ignore_index=ignored)

    def goes_on(module: PrototypeHead, steps: int) -> dict[str, Any]:
        for i in range(steps):
            first = labeled(10 * i)
            module(fresh(first, labels=first.labels.masked_fill(first.labels == 255, ignored)), unlabeled(10 * i))
        return state(module)

    goes_on(predicted, 9)
    if 0 <= ignored < 3:
        assert not predicted.bank.mask[ignored].any()
        assert predicted.bank.mask.flatten(1).any(1).sum() == 2
        assert predicted.settled
    twin = head(ignore_index=ignored)
    twin.load_state_dict(state(predicted))
    assert same(goes_on(twin, 3), goes_on(predicted, 3))
    assert twin.config.ignore_index == ignored


# --- Volumes ----------------------------------------------------------------------------------------------------------


def volumes(seed: int, size: tuple[int, int, int], image: tuple[int, int, int]) -> tuple[LabeledBatch, UnlabeledBatch]:
    """Batches whose slices are those of images."""
    depth, tall = size[0], image[0]
    firsts = [labeled(seed + 7 * i, size=size[1:], image=image[1:]) for i in range(max(depth, tall))]
    seconds = [unlabeled(seed + 7 * i, size=size[1:], image=image[1:]) for i in range(max(depth, tall))]

    def stacked(batches: list[Any], name: str, count: int) -> Tensor:
        return torch.stack([getattr(batch, name).detach() for batch in batches[:count]], dim=-3)

    first = LabeledBatch(
        features=stacked(firsts, "features", depth).requires_grad_(),
        logits=stacked(firsts, "logits", depth),
        labels=stacked(firsts, "labels", tall),
    )
    second = UnlabeledBatch(
        features=stacked(seconds, "features", depth).requires_grad_(),
        pseudo_labels=stacked(seconds, "pseudo_labels", tall),
        confidence=stacked(seconds, "confidence", tall),
        weak_features=stacked(seconds, "weak_features", depth),
        weak_logits=stacked(seconds, "weak_logits", depth),
    )
    return first, second


@pytest.mark.parametrize("options", [{}, {"class_adaptive": (0.2, 0.9)}, {"rare_class_fallback": True}], ids=str)
def test_a_volume_of_one_slice_is_an_image(options: dict[str, Any]) -> None:
    plain, module = (head(grid_size=900, unlabeled_samples_per_image=500, **options) for _ in range(2))
    for i in range(9):
        first, second = volumes(10 * i, (1, *MAP), (1, 17, 21))
        flat = [
            dataclasses.replace(
                batch, **{f.name: value.squeeze(-3).detach() for f in dataclasses.fields(batch)
                          if isinstance(value := getattr(batch, f.name), Tensor)}
            )
            for batch in (first, second)
        ]  # fmt: skip
        for batch in flat:
            batch.features.requires_grad_()
        out, found = plain(*flat), module(first, second)
        assert_close(found.loss, out.loss, atol=1e-5, rtol=1e-5)
        for own, other in zip(gradients(found, first, second), gradients(out, *flat), strict=True):
            assert_close(own.squeeze(-3), other, atol=1e-6, rtol=1e-4)
    assert torch.equal(module.queue.rows, plain.queue.rows)
    assert_close(module.bank.prototypes, plain.bank.prototypes, atol=1e-4, rtol=1e-4)


@given(
    seed=st.integers(0, 999),
    size=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    image=st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9)),
    align_corners=st.booleans(),
    grid_size=st.sampled_from([3, 8, 900]),
)
def test_the_learn_step_of_volumes(seed, size, image, align_corners, grid_size):
    """Against trilinear upsampling, one point at a time, in float64."""
    schedule = {"warmup": 0, "collect": 0, "total": 20, "ramp_start": 0}
    module = head(grid_size=grid_size, align_corners=align_corners, unlabeled_samples_per_image=900, **schedule)
    set_prototypes(module, seed)
    before, mask = module.bank.prototypes.clone(), module.bank.mask.clone()
    first, second = volumes(seed, size, image)
    out = module(first, second)
    own = gradients(out, first, second)
    leaves = [batch.features.detach().double().requires_grad_() for batch in (first, second)]
    large = [F.interpolate(leaf, image, mode="trilinear", align_corners=align_corners) for leaf in leaves]
    axes = [reference._grid_axis(length, grid_of_volume(grid_size)) for length in image]
    grid = [(b, z, y, x) for b in range(2) for z in axes[0] for y in axes[1] for x in axes[2]]
    confident = (second.confidence >= 0.8).nonzero().tolist()
    points, targets = [], []
    for maps, labels, places in ((large[0], first.labels, grid), (large[1], second.pseudo_labels, confident)):
        place = torch.tensor(places, dtype=torch.long).reshape(-1, 4).unbind(1)
        points.append(maps[place[0], :, place[1], place[2], place[3]])
        targets.append(labels[place])
    config = module.config
    losses = [
        reference.contrastive_loss(p, t, before.double(), mask, config.temperature)
        for p, t in zip(points, targets, strict=True)
    ]
    assert_close(out.loss.double(), sum(losses), atol=1e-4, rtol=1e-4)  # type: ignore[arg-type]
    for mine, other in zip(own, torch.autograd.grad(sum(losses), leaves), strict=True):  # type: ignore[arg-type]
        assert_close(mine.double(), other, atol=1e-4, rtol=1e-3)
    moved = reference.ema_update(before.double(), mask, torch.cat(points).detach(), torch.cat(targets), config.momentum)
    assert_close(module.bank.prototypes.double(), moved, atol=1e-4, rtol=1e-4)


def test_the_collect_step_of_volumes() -> None:
    """Against the reference, to which the slices of a volume are one tall image at the size of the features."""
    module = head(warmup=0)
    first, second = volumes(3, (3, *MAP), (7, 17, 21))
    module(first, second)
    small = F.interpolate(first.labels[:, None].float(), (3, *MAP), mode="nearest")[:, 0].long()

    def tall(values: Tensor) -> Tensor:
        return values.detach().flatten(-3, -2)

    assert first.logits is not None
    assert second.weak_features is not None
    assert second.weak_logits is not None
    samples = reference.collect_step(
        tall(first.features), tall(first.logits), tall(small), tall(second.weak_features), tall(second.weak_logits)
    )
    for c in range(3):
        for g in range(2):
            expected = [sample.feature for sample in samples if (sample.class_id, sample.group) == (c, g)]
            found, _ = module.queue.group(c, g)
            assert_close(found, torch.stack(expected)[-200:] if expected else found[:0])


def test_volumes_beside_the_head() -> None:
    projection = ProjectionHead(4, 5, spatial_dims=3)
    features = projection(torch.rand(2, 4, 3, 6, 7))
    assert features.shape == (2, 5, 3, 6, 7)
    bank = PrototypeBank(3, 5)
    bank.set(torch.randn(3, 2, 2, 5), torch.ones(3, 2, 2, dtype=torch.bool))
    assert bank.classify(features).shape == (2, 3, 6, 7)
    assert torch.equal(bank.similarity(features)[:, :, 1], bank.similarity(features[:, :, 1]))
    with pytest.raises(ValueError, match="spatial_dims"):
        ProjectionHead(4, 5, spatial_dims=4)
    with pytest.raises(ValueError, match=r"labeled\.labels: expected an integer tensor \(2, D, H, W\)"):
        LabeledBatch(features=features, labels=torch.zeros(2, 6, 7).long())


# --- Steps without labels ---------------------------------------------------------------------------------------------


def test_steps_without_labels() -> None:
    """Trainers that alternate: labeled images in one step, unlabeled ones in the next."""
    plain, module = head(), head()
    for i in range(14):
        first, second = labeled(10 * i), unlabeled(10 * i)
        ignored = fresh(first, labels=torch.full_like(first.labels, 255))
        if i % 2:
            expected, out = plain(ignored, second), module(None, second)
        else:
            expected, out = plain(first), module(first)
        assert torch.equal(expected.loss, out.loss)
        assert expected.metrics["points_unlabeled"] == out.metrics["points_unlabeled"]
        if out.loss.requires_grad and i % 2:
            assert same(gradients(out, second), gradients(expected, second))
    assert same(state(plain), state(module))
    assert module.bank.present == [True] * 3
    assert module.eval()(None, unlabeled()).loss > 0


def test_steps_of_nothing() -> None:
    module = head()
    before = state(module)
    with pytest.raises(TypeError, match="labeled: expected a LabeledBatch, found NoneType"):
        module(None)
    with pytest.raises(TypeError, match="labeled: expected a LabeledBatch"):
        module(unlabeled(), unlabeled())  # type: ignore[arg-type]
    assert same(state(module), before)


def test_numbers_and_lists_of_other_libraries() -> None:
    from brpg_lib import BRPGConfig, Schedule

    config = BRPGConfig(
        num_prototypes=np.array([3, 2]),  # type: ignore[arg-type]
        temperature=np.float32(0.25),
        momentum=np.float64(0.5),
        queue_size=np.int64(200),
        separate_confidence=np.bool_(True),
        class_adaptive=[np.float32(0.25), 0.5],  # type: ignore[arg-type]
    )
    assert config == BRPGConfig(
        num_prototypes=(3, 2), temperature=0.25, momentum=0.5, queue_size=200, class_adaptive=(0.25, 0.5)
    )
    schedule = Schedule(warmup=np.int64(0), collect=np.uint8(2), total=np.int32(9))  # type: ignore[arg-type]
    module = PrototypeHead(np.int64(3), np.int16(5), schedule, config, seed=np.int64(7))  # type: ignore[arg-type]
    twin = PrototypeHead(3, 5, Schedule(warmup=0, collect=2, total=9), config, seed=7)
    twin.load_state_dict(state(module))
    assert same(state(run(module, 4)), state(run(twin, 4)))
    module(labeled(), unlabeled(), iteration=np.int64(2))
    assert module.iteration == 3
    assert type(copy.deepcopy(module).num_classes) is int


def test_settings_of_omegaconf() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    from brpg_lib import BRPGConfig

    given = omegaconf.OmegaConf.create({"num_prototypes": [3, 2], "class_adaptive": [0.2, 0.9], "temperature": 0.2})
    assert BRPGConfig(**given) == BRPGConfig(num_prototypes=(3, 2), class_adaptive=(0.2, 0.9), temperature=0.2)
    assert BRPGConfig.from_dict(given).to_dict()["num_prototypes"] == [3, 2]
