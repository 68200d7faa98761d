"""Similarity and update of prototypes against plain loops."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import reference
import torch
from builders import random_bank
from hypothesis import given
from hypothesis import strategies as st
from packages import needs_export
from torch import Tensor, nn
from torch.testing import assert_close

from brpg_lib import PrototypeBank, prototype_contrastive_loss

SHAPES = {
    "classes": st.integers(1, 5),
    "slots": st.integers(1, 3),
    "dim": st.integers(1, 6),
    "points": st.integers(0, 30),
    "seed": st.integers(0, 999),
}


@given(**SHAPES)
def test_similarity(classes, slots, dim, points, seed):
    bank, _ = random_bank(classes, slots, dim, seed)
    features = torch.randn(points, dim, requires_grad=True)
    cosine = reference.cosine_similarity(features, bank.prototypes, bank.mask)
    assert_close(bank.compare(features)[1], cosine, atol=1e-5, rtol=1e-5)
    similarity = reference.class_similarity(features, bank.prototypes, bank.mask)
    assert_close(bank.similarity(features), similarity, atol=1e-5, rtol=1e-5)
    if bank.mask.any():
        own = bank.classify(features)
        best = similarity.max(dim=1).values
        assert_close(similarity.gather(1, own[:, None])[:, 0], best, atol=1e-5, rtol=1e-5)


def test_similarity_has_the_gradient_of_the_reference() -> None:
    bank, _ = random_bank(3, 2, 4, 0)
    features = torch.randn(10, 4, requires_grad=True)
    exact = features.detach().double().requires_grad_()
    present = bank.mask.flatten(1).any(1)
    found = torch.autograd.grad(bank.similarity(features)[:, present].sum(), features)[0]
    similarity = reference.class_similarity(exact, bank.prototypes.double(), bank.mask)
    expected = torch.autograd.grad(similarity[:, present].sum(), exact)[0]
    assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)


@given(**SHAPES, momentum=st.floats(0, 1), weight=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_update(classes, slots, dim, points, seed, momentum, weight):
    bank, _ = random_bank(classes, slots, dim, seed, momentum=momentum, misclassified_weight=weight)
    random = torch.Generator().manual_seed(seed + 1)
    features = torch.randn(points, dim, generator=random)
    targets = torch.randint(-1, classes + 1, (points,), generator=random)
    valid = torch.where((targets < 0) | (targets >= classes), 255, targets)
    before = bank.prototypes.clone()
    expected = reference.ema_update(before, bank.mask, features, valid, momentum, weight)
    bank.update(features, targets)
    assert_close(bank.prototypes, expected, atol=1e-5, rtol=1e-5)


def test_update_with_other_integer_types() -> None:
    for dtype in (torch.uint8, torch.int32):
        one, _ = random_bank(3, 2, 4, 0)
        two = copy.deepcopy(one)
        features, classes = torch.randn(20, 4, requires_grad=True), torch.randint(3, (20,))
        one.update(features, classes)
        two.update(features, classes.to(dtype))
        assert torch.equal(one.prototypes, two.prototypes)
        assert not one.prototypes.requires_grad


def test_absent_prototypes_stay_absent() -> None:
    bank, _ = random_bank(3, 2, 4, 0, share=0.5)
    absent = ~bank.mask
    bank.update(torch.randn(200, 4), torch.randint(3, (200,)))
    assert (bank.prototypes[absent] == 0).all()
    assert (bank.similarity(torch.randn(5, 4))[:, absent.flatten(1).all(1)] == -torch.inf).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_point_that_is_not_finite_moves_nothing(value: float) -> None:
    bank, _ = random_bank(3, 2, 4, 0)
    other = copy.deepcopy(bank)
    features, classes = torch.randn(10, 4), torch.randint(3, (10,))
    other.update(features[1:], classes[1:])
    features[0, 2] = value
    bank.update(features, classes)
    assert_close(bank.prototypes, other.prototypes, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_extreme_features_have_a_finite_similarity(value: float) -> None:
    bank, _ = random_bank(3, 2, 4, 0, share=1.1)
    features = torch.full((2, 4), value, requires_grad=True)
    similarity = bank.similarity(features)
    assert similarity.isfinite().all()
    assert similarity.abs().max() <= 1.0001


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    bank, _ = random_bank(3, 2, 4, 0)
    features, classes = torch.randn(20, 4).to(dtype), torch.randint(3, (20,))
    similarity = bank.similarity(features)
    assert similarity.dtype == torch.float32
    assert_close(similarity, bank.similarity(features.float()), atol=1e-6, rtol=1e-6)
    expected = reference.ema_update(bank.prototypes, bank.mask, features.float(), classes, bank.momentum)
    bank.update(features, classes)
    assert bank.prototypes.dtype == torch.float32
    assert_close(bank.prototypes, expected, atol=1e-5, rtol=1e-5)


def test_autocast_does_not_matter() -> None:
    bank, _ = random_bank(5, 3, 16, 0)
    other = copy.deepcopy(bank)
    features, classes = torch.randn(50, 16), torch.randint(5, (50,))
    plain = bank.similarity(features)
    bank.update(features, classes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(other.similarity(features), plain)
        other.update(features, classes)
    assert torch.equal(other.prototypes, bank.prototypes)


# --- Set, presence, state ---------------------------------------------------------------------------------------------


def test_set_replaces_everything() -> None:
    bank, _ = random_bank(3, 3, 4, 0)
    vectors, mask = torch.randn(3, 2, 2, 4), torch.rand(3, 2, 2) < 0.5
    vectors[~mask] = float("nan")  # what is not there does not matter
    bank.set(vectors, mask)
    assert torch.equal(bank.mask[:, :, :2], mask)
    assert not bank.mask[:, :, 2].any()
    assert torch.equal(bank.prototypes[bank.mask], vectors[mask])
    assert (bank.prototypes[~bank.mask] == 0).all()


def test_set_with_the_banks_own_buffers() -> None:
    bank, _ = random_bank(3, 2, 4, 0)
    prototypes, mask = bank.prototypes.clone(), bank.mask.clone()
    bank.set(2 * bank.prototypes, bank.mask)
    assert torch.equal(bank.mask, mask)
    assert torch.equal(bank.prototypes, 2 * prototypes)
    bank.set(bank.prototypes, bank.mask)
    assert torch.equal(bank.prototypes, 2 * prototypes)


def test_set_does_not_keep_the_callers_tensors() -> None:
    bank = PrototypeBank(2, 3, num_prototypes=(1, 1), split_fraction=0.0)
    vectors, mask = torch.ones(2, 2, 1, 3, requires_grad=True), torch.ones(2, 2, 1, dtype=torch.bool)
    bank.set(vectors, mask)
    mask.zero_()
    assert bank.mask.all()
    assert not bank.prototypes.requires_grad


@pytest.mark.parametrize(
    ("vectors", "mask", "field"),
    [
        (torch.zeros(3, 2, 2), torch.ones(3, 2, 2, dtype=torch.bool), "vectors"),
        (torch.zeros(2, 2, 2, 4), torch.ones(2, 2, 2, dtype=torch.bool), "vectors"),
        (torch.zeros(3, 2, 3, 4), torch.ones(3, 2, 3, dtype=torch.bool), "vectors"),
        (torch.zeros(3, 2, 2, 5), torch.ones(3, 2, 2, dtype=torch.bool), "vectors"),
        (torch.zeros(3, 2, 2, 4).long(), torch.ones(3, 2, 2, dtype=torch.bool), "vectors"),
        (torch.full((3, 2, 2, 4), torch.nan), torch.ones(3, 2, 2, dtype=torch.bool), "vectors"),
        (torch.zeros(3, 2, 2, 4), torch.ones(3, 2, 1, dtype=torch.bool), "mask"),
        (torch.zeros(3, 2, 2, 4), torch.ones(3, 2, 2), "mask"),
        (torch.zeros(3, 2, 2, 4), None, "mask"),
        (None, torch.ones(3, 2, 2, dtype=torch.bool), "vectors"),
    ],
)
def test_set_refuses_and_changes_nothing(vectors, mask, field) -> None:
    bank, _ = random_bank(3, 2, 4, 0)
    prototypes, before = bank.prototypes.clone(), bank.mask.clone()
    with pytest.raises((TypeError, ValueError), match=f"{field}: expected .+, found "):
        bank.set(vectors, mask)
    assert torch.equal(bank.prototypes, prototypes)
    assert torch.equal(bank.mask, before)


@pytest.mark.parametrize(
    ("features", "classes", "field"),
    [
        (torch.zeros(5, 3), torch.zeros(5).long(), "features"),
        (torch.zeros(5, 4, 1), torch.zeros(5).long(), "features"),
        (torch.zeros(5, 4).long(), torch.zeros(5).long(), "features"),
        ([1.0], torch.zeros(5).long(), "features"),
        (torch.zeros(5, 4), torch.zeros(4).long(), "classes"),
        (torch.zeros(5, 4), torch.zeros(5), "classes"),
        (torch.zeros(5, 4), None, "classes"),
    ],
)
def test_update_refuses_and_changes_nothing(features, classes, field) -> None:
    bank, _ = random_bank(3, 2, 4, 0)
    prototypes = bank.prototypes.clone()
    with pytest.raises((TypeError, ValueError), match=f"{field}: expected .+, found "):
        bank.update(features, classes)
    assert torch.equal(bank.prototypes, prototypes)


def test_an_empty_bank() -> None:
    bank = PrototypeBank(3, 4)
    features = torch.randn(5, 4)
    assert (bank.similarity(features) == -torch.inf).all()
    bank.update(features, torch.zeros(5, dtype=torch.int64))
    assert not bank.prototypes.any()
    with pytest.raises(ValueError, match="prototypes: expected a bank with prototypes"):
        bank.classify(features)


def test_present_follows_every_change_of_the_mask() -> None:
    bank = PrototypeBank(2, 3, num_prototypes=(1, 1), split_fraction=0.0)
    assert bank.present == [False, False]
    bank.set(torch.ones(2, 2, 1, 3), torch.tensor([[[True], [False]], [[False], [False]]]))
    assert bank.present == [True, False]
    other = PrototypeBank(2, 3, num_prototypes=(1, 1), split_fraction=0.0)
    assert other.present == [False, False]
    other.load_state_dict(bank.state_dict())
    assert other.present == [True, False]
    bank.mask.fill_(True)
    assert bank.present == [True, True]
    twin = copy.deepcopy(other)
    twin.mask.zero_()
    assert (twin.present, other.present) == ([False, False], [True, False])
    other.load_state_dict(PrototypeBank(2, 3, num_prototypes=(1, 1), split_fraction=0.0).state_dict(), assign=True)
    assert other.present == [False, False]


def test_owner_conversions_leave_prototypes_alone() -> None:
    bank, _ = random_bank(3, 2, 4, 0)
    before = bank.prototypes.clone()
    owner = nn.Sequential(nn.Linear(2, 2), bank)
    for convert in (owner.half, owner.double, lambda: owner.to(torch.bfloat16)):
        convert()
        assert bank.prototypes.dtype == torch.float32
        assert torch.equal(bank.prototypes, before)


def test_standing_alone_in_a_supervised_trainer(device: torch.device) -> None:
    """The design's other use: only the bank and the loss."""
    bank, _ = random_bank(3, 2, 4, 0, share=1.1)
    bank = bank.to(device)
    features = torch.randn(30, 4, device=device, requires_grad=True)
    classes = torch.randint(3, (30,), device=device)
    nn.functional.cross_entropy(bank.similarity(features) / 0.1, classes).backward()
    bank.update(features, classes)
    assert features.grad is not None
    assert bank.prototypes.device.type == device.type


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e30])
def test_rows_without_direction_get_no_gradient(value: float) -> None:
    bank, _ = random_bank(3, 2, 4, 0, share=1.1)
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    features[1, 2] = value
    if value == 0.0:
        features[1] = 0.0
    features.requires_grad_()
    prototype_contrastive_loss(bank.similarity(features), torch.arange(3)).backward()
    assert torch.equal(features.grad[1], torch.zeros(4))
    assert features.grad[[0, 2]].abs().sum() > 0


# --- Maps and exports -------------------------------------------------------------------------------------------------


class NearestPrototype(nn.Module):
    """Classifies by the prototypes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Conv2d(3, 4, 1)
        self.bank, _ = random_bank(3, 2, 4, 0, share=1.1)

    def forward(self, images: Tensor) -> Tensor:
        return self.bank.classify(self.network(images))


def test_maps_are_points_side_by_side() -> None:
    bank, _ = random_bank(3, 2, 4, 0)
    maps = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    points = maps.movedim(1, 3).reshape(-1, 4)
    assert torch.equal(bank.similarity(maps).movedim(1, 3).reshape(-1, 3), bank.similarity(points))
    assert torch.equal(bank.classify(maps).flatten(), bank.classify(points))


def test_maps_have_gradients() -> None:
    bank, _ = random_bank(3, 2, 4, 0, share=1.1)
    maps = torch.randn(2, 4, 5, 6, requires_grad=True)
    bank.similarity(maps).sum().backward()
    assert maps.grad is not None
    assert bool(maps.grad.abs().sum() > 0)


def test_maps_of_other_channels_are_refused() -> None:
    bank, _ = random_bank(3, 2, 4, 0)
    with pytest.raises(ValueError, match=r"features: expected a floating-point tensor \(N, 4\)"):
        bank.similarity(torch.randn(2, 5, 3, 3))


@needs_export
def test_classification_can_be_exported() -> None:
    module, images = NearestPrototype().eval(), torch.randn(2, 3, 5, 6)
    assert torch.equal(torch.export.export(module, (images,)).module()(images), module(images))


@needs_export
def test_classification_can_be_exported_to_onnx(tmp_path: Path) -> None:
    onnx_reference = pytest.importorskip("onnx.reference")
    module, images = NearestPrototype().eval(), torch.randn(2, 3, 5, 6)
    file = tmp_path / "nearest.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about the shapes that are checked
        torch.onnx.export(module, (images,), str(file), dynamo=False, input_names=["images"])
    (found,) = onnx_reference.ReferenceEvaluator(str(file)).run(None, {"images": images.numpy()})
    assert torch.equal(torch.from_numpy(found), module(images))
