import torch

from brpg_lib.examples.training.data.augment import IGNORE_INDEX, WeakAugment, cutmix, cutmix_boxes
from brpg_lib.examples.training.data.batches import BatchSource
from brpg_lib.examples.training.recipe import Recipe


def test_weak_moves_image_and_label_together():
    label = torch.arange(40 * 40).view(40, 40) % 7
    image = (label * 30).to(torch.uint8).expand(3, -1, -1)
    torch.manual_seed(0)
    view, moved = WeakAugment(33, (1.0, 1.0), flip=True)(image, label)
    assert view.shape == (3, 33, 33)
    assert torch.equal(view[0].long(), moved * 30)


def test_padding_is_ignored():
    image, label = torch.zeros(3, 20, 20, dtype=torch.uint8), torch.zeros(20, 20, dtype=torch.long)
    view, padded = WeakAugment(33, (0.75, 1.0), flip=False)(image, label)
    assert view.shape == (3, 33, 33)
    assert (padded == IGNORE_INDEX).any()


def test_cutmix_pastes_the_previous_image():
    values = torch.arange(3.0)[:, None, None].expand(3, 9, 9)
    torch.manual_seed(0)
    boxes = cutmix_boxes(3, 9, p=1.0)
    assert boxes.flatten(1).any(1).all()
    mixed = cutmix(values, boxes)
    for i in range(3):
        assert (mixed[i][boxes[i]] == (i - 1) % 3).all()
        assert (mixed[i][~boxes[i]] == i).all()
    assert torch.equal(cutmix(values[:, None], boxes)[:, 0], mixed)


def test_batch_is_a_function_of_seed_and_iteration():
    data = Recipe(data="digits", size=33).load_data()
    source, other = BatchSource(data, 33, 4, 0, 2), BatchSource(data, 33, 4, 0, 2)
    for iteration in range(3):
        source(iteration)
    torch.rand(5)
    a, b, c = source(3), other(3), other(4)
    assert a.strong.shape == (2, 4, 3, 33, 33)
    for name in vars(a):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert not torch.equal(a.images, c.images)


def test_every_image_is_seen_once_an_epoch():
    data = Recipe(data="digits", size=33).load_data()
    source = BatchSource(data, 33, 8, 0, 1)
    seen = [i for iteration in range(25) for i in source._indices(200, iteration, 0)]
    assert sorted(seen) == list(range(200))
