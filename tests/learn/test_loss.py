"""The contrastive loss against the reference and torch's cross-entropy."""

from __future__ import annotations

import pytest
import reference
import torch
import torch.nn.functional as F
from builders import random_bank
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from brpg_lib import PrototypeContrastiveLoss, prototype_contrastive_loss


def case(points: int, classes: int, seed: int, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    similarity = 2 * torch.rand(points, classes, generator=random) - 1
    targets = torch.randint(classes, (points,), generator=random)
    targets[torch.rand(points, generator=random) < ignored] = 255
    return similarity.requires_grad_(), targets


@given(
    classes=st.integers(1, 5),
    slots=st.integers(1, 3),
    dim=st.integers(1, 6),
    points=st.integers(0, 25),
    temperature=st.sampled_from([0.05, 0.1, 1.0]),
    weight=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    balance=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 999),
)
def test_equals_the_reference(classes, slots, dim, points, temperature, weight, balance, seed):
    """From features on, with absent classes, and its gradient."""
    bank, _ = random_bank(classes, slots, dim, seed, share=0.5)
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(points, dim, generator=random).requires_grad_()
    targets = torch.randint(classes, (points,), generator=random)
    targets[torch.rand(points, generator=random) < 0.2] = 255
    exact = features.detach().double().requires_grad_()
    expected = reference.contrastive_loss(
        exact, targets, bank.prototypes.double(), bank.mask, temperature, 255, weight, balance
    )
    options = {"temperature": temperature, "misclassified_weight": weight, "point_balance": balance}
    found = prototype_contrastive_loss(bank.similarity(features), targets, **options)
    assert_close(PrototypeContrastiveLoss(**options)(bank.similarity(features), targets), found)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    gradient, exact_gradient = torch.autograd.grad(found, features)[0], torch.autograd.grad(expected, exact)[0]
    assert_close(gradient.double(), exact_gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [255, -1, -100])
def test_is_cross_entropy(reduction: str, weighted: bool, ignore_index: int) -> None:
    similarity, targets = case(40, 4, 0)
    targets = torch.where(targets == 255, ignore_index, targets)
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0]) if weighted else None
    expected = F.cross_entropy(similarity / 0.1, targets, weight, ignore_index=ignore_index, reduction=reduction)
    options = {"weight": weight, "ignore_index": ignore_index, "reduction": reduction}
    found = prototype_contrastive_loss(similarity, targets, **options)
    assert_close(found, expected)
    assert_close(PrototypeContrastiveLoss(**options)(similarity, targets), expected)
    one, two = (torch.autograd.grad(loss.sum(), similarity, retain_graph=True)[0] for loss in (found, expected))
    assert_close(one, two)


def test_balanced_classes_count_the_same() -> None:
    """However many points each has, the loss is the mean of the classes' own losses."""
    similarity, targets = case(60, 3, 2)
    targets[:40] = 0
    each = [prototype_contrastive_loss(similarity[targets == c], targets[targets == c]) for c in range(3)]
    found = prototype_contrastive_loss(similarity, targets, point_balance=1.0)
    assert_close(found, torch.stack(each).mean())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_misclassified_points_count_as_often_as_told(reduction: str) -> None:
    similarity, targets = case(40, 3, 1)
    wrong = (similarity.argmax(1) != targets) & (targets != 255)
    assert wrong.any()
    found = prototype_contrastive_loss(similarity, targets, misclassified_weight=3.0, reduction=reduction)
    losses = F.cross_entropy(similarity / 0.1, targets, ignore_index=255, reduction="none")
    repeats = torch.where(wrong, 3, 1)
    expected = {
        "none": losses * repeats,
        "sum": losses.repeat_interleave(repeats).sum(),
        "mean": losses.repeat_interleave(repeats).sum() / repeats[targets != 255].sum(),
    }[reduction]
    assert_close(found, expected)


def test_gradcheck() -> None:
    """In float64 the loss itself computes in float32: steps and tolerances are chosen for that."""
    similarity, targets = case(6, 3, 2)
    similarity = similarity.detach().double().requires_grad_()
    weight = torch.tensor([1.0, 2.0, 0.5])
    assert torch.autograd.gradcheck(
        lambda s: prototype_contrastive_loss(s, targets, temperature=0.5, weight=weight).double(),
        (similarity,),
        eps=1e-2,
        atol=2e-3,
        rtol=2e-2,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_counts(reduction: str) -> None:
    for similarity, targets in (
        (torch.randn(5, 3), torch.full((5,), 255)),
        (torch.full((5, 3), -torch.inf), torch.zeros(5).long()),
        (torch.full((5, 3), torch.nan), torch.zeros(5).long()),
        (torch.zeros(0, 3), torch.zeros(0).long()),
    ):
        leaf = similarity.requires_grad_()
        loss = prototype_contrastive_loss(leaf, targets, reduction=reduction)
        assert (loss == 0).all()
        loss.sum().backward()
        assert (leaf.grad == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [0, 1])
def test_a_point_whose_similarity_is_not_finite_does_not_count(bad: float, column: int) -> None:
    similarity, targets = case(10, 3, 3, ignored=0.0)
    targets[0] = 0
    expected = prototype_contrastive_loss(similarity[1:], targets[1:])
    broken = similarity.detach().clone()
    broken[0, column] = bad
    broken.requires_grad_()
    found = prototype_contrastive_loss(broken, targets)
    assert_close(found, expected)
    found.backward()
    assert broken.grad.isfinite().all()


def test_absent_classes_do_not_compete() -> None:
    similarity, targets = case(20, 3, 4, ignored=0.0)
    targets = targets.clamp(max=1)
    wide = torch.cat((similarity.detach()[:, :2], torch.full((20, 1), -torch.inf)), dim=1).requires_grad_()
    found = prototype_contrastive_loss(wide, targets)
    assert_close(found, prototype_contrastive_loss(similarity[:, :2], targets))
    found.backward()
    assert wide.grad.isfinite().all()
    targets[:5] = 2
    assert_close(prototype_contrastive_loss(wide, targets), prototype_contrastive_loss(wide[5:], targets[5:]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("ignore_index", [-1, 254, 255])
def test_every_integer_type(dtype: torch.dtype, ignore_index: int) -> None:
    similarity, targets = case(20, 3, 5, ignored=0.0)
    expected = F.cross_entropy(similarity / 0.1, targets)
    found = prototype_contrastive_loss(similarity, targets.to(dtype), ignore_index=ignore_index)
    assert_close(found, expected)


def test_autocast_and_half_precision() -> None:
    similarity, targets = case(20, 3, 6)
    plain = prototype_contrastive_loss(similarity, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prototype_contrastive_loss(similarity, targets), plain)
    half = similarity.detach().half()
    assert_close(prototype_contrastive_loss(half, targets), prototype_contrastive_loss(half.float(), targets))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"similarity": torch.zeros(4)}, "similarity"),
        ({"similarity": torch.zeros(4, 3).long()}, "similarity"),
        ({"similarity": None}, "similarity"),
        ({"classes": torch.zeros(3).long()}, "classes"),
        ({"classes": torch.zeros(4)}, "classes"),
        ({"classes": [0, 1, 2, 0]}, "classes"),
        ({"reduction": "avg"}, "reduction"),
        ({"weight": torch.zeros(4)}, "weight"),
        ({"weight": [1.0, 1.0, 1.0]}, "weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"misclassified_weight": -1.0}, "misclassified_weight"),
        ({"point_balance": -1.0}, "point_balance"),
    ],
)
def test_what_is_refused(options, field) -> None:
    arguments = {"similarity": torch.zeros(4, 3), "classes": torch.zeros(4).long()} | options
    with pytest.raises((TypeError, ValueError), match=f"{field}: expected .+, found "):
        prototype_contrastive_loss(**arguments)
    if field in ("reduction", "temperature", "misclassified_weight", "point_balance"):
        with pytest.raises((TypeError, ValueError), match=f"{field}: expected .+, found "):
            PrototypeContrastiveLoss(**options)
