import pytest
import torch

from brpg_lib.examples.training.data.digits import DigitScenes, digit_indices


def test_scene_is_a_function_of_seed_split_and_index():
    first, second = DigitScenes("labeled", 5, seed=3), DigitScenes("labeled", 50, seed=3)
    second[7]
    for a, b in zip(first[4], second[4], strict=True):
        assert torch.equal(a, b)
    for other in (
        DigitScenes("labeled", 5, seed=4),
        DigitScenes("unlabeled", 5, seed=3),
        DigitScenes("test", 5, seed=3),
    ):
        assert not torch.equal(first[4][0], other[4][0])


def test_shapes_and_classes():
    image, label = DigitScenes("test", 1, size=41)[0]
    assert image.shape == (3, 41, 41)
    assert image.dtype == torch.uint8
    assert label.shape == (41, 41)
    assert label.dtype == torch.int64
    assert 0 <= label.min() <= label.max() <= 10
    assert (label > 0).any()


def test_train_and_test_show_different_handwriting():
    assert not set(digit_indices("test")) & set(digit_indices("labeled"))
    assert digit_indices("labeled") == digit_indices("unlabeled")


def test_ends_where_it_says():
    assert len(list(DigitScenes("labeled", 3))) == 3


def test_unknown_split():
    with pytest.raises(ValueError, match="split: expected one of labeled, unlabeled, test, found 'train'"):
        DigitScenes("train", 1)
