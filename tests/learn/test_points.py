"""Which pixels enter the loss, and their features."""

from __future__ import annotations

import pytest
import reference
import torch
from builders import fresh, labeled, unlabeled
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from brpg_lib import UnlabeledBatch
from brpg_lib.kernels.random import fold
from brpg_lib.learn.points import Points, grid_positions, labeled_points, unlabeled_points

SIDE = st.integers(1, 24)
SMALL = st.integers(1, 9)


def key(*values: int) -> torch.Tensor:
    return fold(torch.tensor(0), *values)


def draw(batch: UnlabeledBatch, threshold: float, per_image: int, *, seed: int = 0, classes: int = 3) -> Points:
    options = {"num_classes": classes, "samples_per_image": per_image, "align_corners": True, "ignore_index": 255}
    return unlabeled_points(batch, threshold, key(seed), **options)


def positions(height: int, width: int, images: int = 1) -> UnlabeledBatch:
    """Unlabeled images whose feature (y + 1, x + 1, image + 1) tells the pixel; every pixel has confidence 0.9."""
    axes = torch.meshgrid(torch.arange(images), torch.arange(height), torch.arange(width), indexing="ij")
    features = torch.stack((axes[1], axes[2], axes[0]), dim=1).float() + 1
    return UnlabeledBatch(
        features=features,
        pseudo_labels=torch.zeros(images, height, width).long(),
        confidence=torch.full((images, height, width), 0.9),
    )


def pixels_of(points: Points) -> list[tuple[int, ...]]:
    return [tuple(row) for row in (points.features[points.classes == 0].round().long() - 1).tolist()]


# --- Labeled grid -----------------------------------------------------------------------------------------------------


@given(height=st.integers(1, 80), width=st.integers(1, 80), grid=st.integers(1, 40))
def test_grid(height: int, width: int, grid: int) -> None:
    rows, columns = (grid_positions(size, grid, torch.device("cpu")).tolist() for size in (height, width))
    assert [(y, x) for y in rows for x in columns] == reference.grid_points(height, width, grid)


@given(images=st.integers(1, 3), dim=st.integers(1, 4), h=SMALL, w=SMALL, height=SIDE, width=SIDE,
       grid=st.integers(1, 9), align_corners=st.booleans(), seed=st.integers(0, 99))  # fmt: skip
def test_labeled_points(images, dim, h, w, height, width, grid, align_corners, seed):
    batch = labeled(seed, num_images=images, dim=dim, image=(height, width), size=(h, w))
    options = {"num_classes": 3, "align_corners": align_corners, "ignore_index": 255}
    points = labeled_points(batch, grid_size=grid, **options)
    upsampled = reference.upsample(batch.features, height, width, align_corners)
    pixels = reference.grid_points(height, width, grid)
    expected = torch.stack([upsampled[b, :, y, x] for b in range(images) for y, x in pixels])
    targets = torch.stack([batch.labels[b, y, x] for b in range(images) for y, x in pixels])
    assert torch.equal(points.classes, targets)
    counted = targets != 255
    assert_close(points.features[counted], expected[counted], atol=1e-4, rtol=1e-4)
    weights = torch.randn(expected.shape) * counted[:, None]
    found, wanted = (
        torch.autograd.grad((values * weights).sum(), batch.features)[0] for values in (points.features, expected)
    )
    assert_close(found, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_labeled_points_of_other_precisions_and_layouts(dtype: torch.dtype, layout: torch.memory_format) -> None:
    plain = labeled(ignored=0.0)
    batch = fresh(plain, features=plain.features.detach().to(dtype).contiguous(memory_format=layout))
    points = labeled_points(batch, num_classes=3, grid_size=6, align_corners=True, ignore_index=255)
    same = fresh(plain, features=batch.features.detach().float().contiguous())
    expected = labeled_points(same, num_classes=3, grid_size=6, align_corners=True, ignore_index=255)
    assert points.features.dtype == torch.float32
    assert_close(points.features, expected.features)


def test_points_without_direction_do_not_count() -> None:
    batch = labeled(ignored=0.0, image=(9, 11))  # as large as the map: every grid point reads one feature
    features = batch.features.detach().clone()
    features[0, :, 0, 0] = 0.0
    features[0, 1, 0, 10] = float("nan")
    features[1, 0, 8, 0] = float("inf")
    features[1, 0, 8, 10] = -float("inf")
    batch = fresh(batch, features=features)
    points = labeled_points(batch, num_classes=3, grid_size=1, align_corners=True, ignore_index=255)
    assert (points.classes == 255).tolist() == [True, True, False, False, False, False, True, True]
    assert int(points.dropped) == 4
    assert points.features.isfinite().all()
    points.features.square().sum().backward()
    assert batch.features.grad.isfinite().all()


# --- Unlabeled draw ---------------------------------------------------------------------------------------------------


@given(h=SMALL, w=SMALL, height=SIDE, width=SIDE, dim=st.integers(1, 4), align_corners=st.booleans(),
       seed=st.integers(0, 99))  # fmt: skip
def test_unlabeled_points_read_the_upsampled_map(h, w, height, width, dim, align_corners, seed):
    batch = unlabeled(seed, dim=dim, image=(height, width), size=(h, w))
    options = {"num_classes": 3, "samples_per_image": 10**6, "align_corners": align_corners, "ignore_index": 255}
    points = unlabeled_points(batch, 0.7, key(seed), **options)
    counted = points.classes != 255
    upsampled = reference.upsample(batch.features.detach(), height, width, align_corners).movedim(1, 3)
    confident = batch.confidence >= 0.7
    expected = torch.cat((upsampled[confident], batch.pseudo_labels[confident][:, None]), dim=1)
    found = torch.cat((points.features.detach(), points.classes[:, None]), dim=1)[counted]
    assert found.shape == expected.shape
    if len(found):
        distance = torch.cdist(found.double(), expected.double())
        assert distance.amin(0).max() < 1e-3, "each confident pixel is a point"
        assert distance.amin(1).max() < 1e-3, "and nothing else is"


def test_only_confident_pixels_with_a_class() -> None:
    batch = positions(6, 7)
    confidence, labels = batch.confidence.clone(), batch.pseudo_labels.clone()
    confidence[0, :3] = 0.5
    labels[0, :, :3] = 255
    batch = fresh(batch, confidence=confidence, pseudo_labels=labels)
    assert sorted(p[:2] for p in pixels_of(draw(batch, 0.8, 1000))) == [(y, x) for y in (3, 4, 5) for x in (3, 4, 5, 6)]
    assert pixels_of(draw(batch, 0.95, 1000)) == []


def test_the_threshold_itself_is_confident() -> None:
    confidence = torch.tensor([[[0.5, 0.75, 0.875]]])
    batch = UnlabeledBatch(
        features=torch.ones(1, 3, 1, 3), pseudo_labels=torch.zeros(1, 1, 3).long(), confidence=confidence
    )
    assert (draw(batch, 0.75, 10).classes == 0).sum() == 2


@pytest.mark.parametrize(("cap", "expected"), [(1, 2), (20, 40), (42, 84), (1000, 84)])
def test_the_cap_counts_images(cap: int, expected: int) -> None:
    chosen = pixels_of(draw(positions(6, 7, images=2), 0.8, cap))
    assert len(chosen) == expected
    assert len(set(chosen)) == expected, "drawn without replacement"


def test_the_draw_is_over_the_batch() -> None:
    batch = positions(6, 7, images=2)
    confidence = batch.confidence.clone()
    confidence[0] = 0.0
    assert len(pixels_of(draw(fresh(batch, confidence=confidence), 0.8, 10))) == 20, "one image may use the cap of two"


def test_the_draw_is_uniform_and_depends_on_the_key_only() -> None:
    batch, draws, per_draw = positions(5, 8), 600, 8
    counts = torch.zeros(5, 8)
    for seed in range(draws):
        for y, x, _ in pixels_of(draw(batch, 0.8, per_draw, seed=seed)):
            counts[y, x] += 1
    expected = draws * per_draw / 40
    assert counts.sum() == draws * per_draw
    variance = expected * (1 - per_draw / 40)
    assert ((counts - expected) ** 2 / variance).sum() < 80  # about 39 degrees of freedom
    first, again, other = (pixels_of(draw(batch, 0.8, per_draw, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert set(first) != set(other)


@pytest.mark.parametrize("ignore_index", [-1, 254, 255, 300])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_ignore_index_of_any_value(ignore_index: int, dtype: torch.dtype) -> None:
    batch = unlabeled()
    batch = fresh(batch, pseudo_labels=batch.pseudo_labels.to(dtype))
    options = {"num_classes": 3, "samples_per_image": 10**6, "align_corners": True, "ignore_index": ignore_index}
    points = unlabeled_points(batch, 0.8, key(0), **options)
    confident = batch.confidence >= 0.8
    assert (points.classes != ignore_index).sum() == confident.sum()
    expected = batch.pseudo_labels[confident].long().bincount(minlength=3)
    assert torch.equal(points.classes[points.classes != ignore_index].bincount(minlength=3), expected)
    grid = labeled_points(
        fresh(labeled(), labels=labeled(ignored=0.0).labels.to(dtype)),
        num_classes=3,
        grid_size=4,
        align_corners=True,
        ignore_index=ignore_index,
    )
    assert (grid.classes != ignore_index).all()
