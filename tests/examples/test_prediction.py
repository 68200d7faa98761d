"""Prediction of whole images, in windows where they are large: what lies beside them changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from builders import random_bank, random_images
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from brpg_lib.examples.training.data.augment import to_float
from brpg_lib.examples.training.images import ReadImage, of_one_size
from brpg_lib.examples.training.networks.base import Prediction
from brpg_lib.examples.training.prediction import Predicted, predict, windows

CPU = torch.device("cpu")


@given(length=st.integers(1, 300), window=st.integers(1, 100))
def test_windows_cover_everything(length: int, window: int) -> None:
    found = windows(length, window)
    covered = torch.zeros(length, dtype=torch.bool)
    for part in found:
        covered[part] = True
        assert part.stop - part.start == min(window, length)
        assert part.start >= 0
        assert part.stop <= length
    assert covered.all()


class Small(nn.Module):
    """Sees ``2 * reach + 1`` pixels around each; three classes, four channels."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        torch.manual_seed(reach)
        self.conv = nn.Conv2d(3, 7, 2 * reach + 1, padding=reach)

    def forward(self, images: Tensor, features: int = 0) -> Prediction:
        found = self.conv(images)
        return Prediction(found[:, :3], found[:, :3], found[:features, 3:] if features else None, None)


def by_loops(network: Small, image: Tensor, window: int) -> Tensor:
    """Probabilities ``(C, H, W)`` by one window after the other."""
    total, count = torch.zeros(3, *image.shape[1:]), torch.zeros(image.shape[1:])
    for rows in windows(image.shape[1], window):
        for columns in windows(image.shape[2], window):
            with torch.no_grad():
                part = network(to_float(image[None, :, rows, columns])).logits.softmax(1)[0]
            total[:, rows, columns] += part
            count[rows, columns] += 1
    return total / count


@given(
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    window=st.integers(1, 40),
    count=st.integers(1, 3),
    batch_size=st.integers(1, 9),
    reach=st.integers(0, 2),
)
def test_windows_are_averaged(size, window, count, batch_size, reach):
    network, images = Small(reach), random_images(count, *size)
    found = predict(network, images, window=window, batch_size=batch_size).probabilities
    for image, own in zip(images, found, strict=True):
        torch.testing.assert_close(own, by_loops(network, image, window), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_windows_are_the_whole_image_where_the_network_sees_no_further(reach: int) -> None:
    """Away from the edges of windows; there, a window ends in zeros and the image does not."""
    network, images, window = Small(reach), random_images(2, 40, 70), 17
    bank, _ = random_bank(3, 2, 4, 0, share=1.1)
    whole, moved = (predict(network, images, bank=bank, window=side) for side in (None, window))
    clear = torch.ones(40, 70, dtype=torch.bool)
    for part in windows(40, window):
        for edge in (part.start, part.stop):
            clear[max(0, edge - reach) : edge + reach] &= edge in (0, 40)
    for part in windows(70, window):
        for edge in (part.start, part.stop):
            clear[:, max(0, edge - reach) : edge + reach] &= edge in (0, 70)
    assert clear.float().mean() > 0.1
    for one, other in zip(whole, moved, strict=True):
        torch.testing.assert_close(one[:, :, clear], other[:, :, clear], atol=1e-5, rtol=1e-5)
    assert torch.equal(whole.classes()[:, clear], moved.classes()[:, clear])
    assert torch.equal(whole.classes(True)[:, clear], moved.classes(True)[:, clear])


def test_the_nearest_prototype_classifies() -> None:
    network, images = Small(1), random_images(2, 12, 15)
    bank, _ = random_bank(3, 2, 4, 0, share=1.1)
    bank.mask[1] = False
    found = predict(network, images, bank=bank)
    with torch.no_grad():
        features = network(to_float(images), features=2).features
    assert torch.equal(found.classes(by_prototypes=True), bank.classify(features))
    assert not (found.classes(by_prototypes=True) == 1).any(), "a class without prototypes"
    with pytest.raises(ValueError, match="bank: expected prototypes to classify by, found None"):
        predict(network, images).classes(by_prototypes=True)


def test_entropy_is_between_certain_and_uniform() -> None:
    sure, unsure = torch.tensor([1.0, 0.0, 0.0]), torch.full((3,), 1 / 3)
    half = torch.tensor([0.5, 0.5, 0.0])
    found = Predicted(torch.stack((sure, half, unsure), dim=1)[None, :, :, None], None).entropy()
    assert found[0, :, 0].tolist() == pytest.approx([0.0, math.log(2) / math.log(3), 1.0])


def test_reduced_images_get_maps_of_their_own_size() -> None:
    found = predict(Small(0), random_images(1, 6, 8), bank=random_bank(3, 2, 4, 0, share=1.1)[0])
    large = found.enlarged((12, 16))
    assert large.probabilities.shape == large.similarity.shape == (1, 3, 12, 16)
    torch.testing.assert_close(large.probabilities.sum(1), torch.ones(1, 12, 16))
    flat = Predicted(torch.tensor([0.2, 0.8]).view(1, 2, 1, 1).expand(1, 2, 3, 3), None).enlarged((7, 5))
    torch.testing.assert_close(flat.probabilities[0, 1], torch.full((7, 5), 0.8))
    assert found.enlarged((6, 8)) is found


@given(
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.booleans()), max_size=12), most=st.integers(1, 20)
)
def test_groups_are_of_one_size_and_in_order(sizes, most):
    images = [
        ReadImage(str(i), torch.zeros(3, *size), torch.zeros(3, *size), "bad" if bad else "")
        for i, (*size, bad) in enumerate(sizes)
    ]
    groups = list(of_one_size(images, most))
    assert [image.name for group in groups for image in group] == [image.name for image in images]
    for group in groups:
        assert len({image.shown.shape for image in group}) == 1
        assert len(group) == 1 or (
            len(group) * group[0].shown[0].numel() <= most and not any(image.error for image in group)
        )
