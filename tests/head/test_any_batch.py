"""Batches of any value, type and layout are survived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import (
    CLASSES,
    DIM,
    Batches,
    assert_sound,
    fresh,
    head,
    labeled,
    learning_head,
    step,
    unlabeled,
)
from torch import Tensor

from brpg_lib import PrototypeHead

pytestmark = pytest.mark.usefixtures("everywhere")


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
        first, second = (b if b is None else fresh(b.to(device)) for b in batches)
        out = module(first, second)
        assert_sound(out, first, second)
        assert module.bank.prototypes.isfinite().all()
        assert module.queue.features.isfinite().all()
    if when == "always" and ("nan" in name or "inf" in name or "huge" in name):
        assert out.metrics["dropped"] > 0, "nothing is lost silently"


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


def test_channels_last_changes_nothing() -> None:
    def turned(batch: Any) -> Any:
        return fresh(batch, features=batch.features.detach().to(memory_format=torch.channels_last))

    heads = [head(), head()]
    for seed in range(8):
        first, second = labeled(seed), unlabeled(seed)
        losses = [heads[0](first, second).loss, heads[1](turned(first), turned(second)).loss]
        assert torch.allclose(*losses, rtol=1e-5)
    assert losses[0] > 0
    assert torch.allclose(heads[0].bank.prototypes, heads[1].bank.prototypes, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("options", [{}, {"separate_confidence": False}], ids=str)
def test_caps_count_the_images_that_there_are(images: int, options: dict[str, bool]) -> None:
    module = head(warmup=0, samples_per_image=4, **options)
    module(None, unlabeled(0, num_images=images))
    assert module.queue.rows.sum() == 4 * images
