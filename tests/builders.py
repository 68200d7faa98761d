"""Made-up batches whose classes have structure, and heads that have come some way on them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from brpg_lib import (
    BRPGConfig,
    FeatureQueue,
    HeadOutput,
    LabeledBatch,
    PrototypeBank,
    PrototypeHead,
    Samples,
    Schedule,
    UnlabeledBatch,
)
from brpg_lib.output import METRICS

CLASSES, DIM = 3, 5
IMAGE, MAP = (17, 21), (9, 11)
Batch = TypeVar("Batch", LabeledBatch, UnlabeledBatch)
Batches = tuple[LabeledBatch, UnlabeledBatch | None]


def replace_everywhere(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    """Put another function in the place of one, in every module of the library that has imported it."""
    for module in [module for key, module in sys.modules.items() if key.startswith("brpg_lib.")]:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def centers(num_classes: int = CLASSES, dim: int = DIM) -> Tensor:
    """The mean feature (C, D) of each class, the same in all batches."""
    return 2 * torch.randn(num_classes, dim, generator=generator(99))


def random_images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images (B, 3, H, W) uint8 without any structure."""
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator(seed))


def label_map(num_images: int, num_classes: int, size: tuple[int, int], seed: int) -> Tensor:
    """Labels (B, H, W) in blocks; every class is in the first image where it has room."""
    blocks = torch.randint(num_classes, (num_images, 4, 4), generator=generator(seed))
    blocks[0].view(-1)[: min(num_classes, 16)] = torch.arange(min(num_classes, 16))
    return resize(blocks, size)


def resize(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (B, H, W) at another size."""
    return nn.functional.interpolate(labels[:, None].double(), size, mode="nearest")[:, 0].long()


def maps(labels: Tensor, num_classes: int, dim: int, seed: int, noise: float = 0.7) -> tuple[Tensor, Tensor]:
    """Features (B, D, h, w) about the centers of labels (B, h, w), and logits (B, C, h, w), mostly right."""
    random = generator(seed)
    features = centers(num_classes, dim)[labels].movedim(3, 1)
    features = features + noise * torch.randn(features.shape, generator=random)
    logits = nn.functional.one_hot(labels, num_classes).movedim(3, 1).float()
    logits = logits * 6 * torch.rand(labels.shape, generator=random)[:, None]
    return features, logits + 0.5 * torch.randn(logits.shape, generator=random)


def labeled(
    seed: int = 0,
    *,
    num_images: int = 2,
    num_classes: int = CLASSES,
    dim: int = DIM,
    image: tuple[int, int] = IMAGE,
    size: tuple[int, int] = MAP,
    ignored: float = 0.1,
    ignore_index: int = 255,
    absent: Iterable[int] = (),
) -> LabeledBatch:
    """Labeled images; the share `ignored` of the pixels and the classes `absent` carry `ignore_index`."""
    truth = label_map(num_images, num_classes, image, seed)
    features, logits = maps(resize(truth, size), num_classes, dim, seed + 1)
    hidden = torch.rand(truth.shape, generator=generator(seed + 2)) < ignored
    for index in absent:
        hidden |= truth == index
    return LabeledBatch(
        features=features.requires_grad_(), logits=logits, labels=torch.where(hidden, ignore_index, truth)
    )


def unlabeled(
    seed: int = 0,
    *,
    num_images: int = 2,
    num_classes: int = CLASSES,
    dim: int = DIM,
    image: tuple[int, int] = IMAGE,
    size: tuple[int, int] = MAP,
    weak_images: int | None = None,
    weak_size: tuple[int, int] | None = None,
    absent: Iterable[int] = (),
) -> UnlabeledBatch:
    """Unlabeled images; no weak view has a pixel of the classes `absent`, and no pseudo label is one."""
    seed += 1000
    truth = label_map(num_images, num_classes, image, seed)
    features, _ = maps(resize(truth, size), num_classes, dim, seed + 1)
    confidence = torch.rand(truth.shape, generator=generator(seed + 2)) ** 0.3
    weak_truth = label_map(weak_images or num_images, num_classes, weak_size or size, seed + 3)
    weak_features, weak_logits = maps(weak_truth, num_classes, dim, seed + 4)
    for index in absent:
        confidence[truth == index] = 0.0
        weak_logits[:, index] = -20.0
    return UnlabeledBatch(
        features=features.requires_grad_(),
        pseudo_labels=truth,
        confidence=confidence,
        weak_features=weak_features,
        weak_logits=weak_logits,
    )


def fresh(batch: Batch, **changes: Any) -> Batch:
    """A copy of the batch with other fields, its features a new leaf."""
    batch = dataclasses.replace(batch, **changes)
    return dataclasses.replace(batch, features=batch.features.detach().clone().requires_grad_())


def gradients(out: HeadOutput, *batches: LabeledBatch | UnlabeledBatch | None) -> list[Tensor]:
    """Gradient of the loss with respect to the features of each batch."""
    leaves = [batch.features for batch in batches if batch is not None]
    return list(torch.autograd.grad(out.loss, leaves, retain_graph=True))


def head(
    num_classes: int = CLASSES, dim: int = DIM, *, seed: int = 0, config: BRPGConfig | None = None, **options: Any
) -> PrototypeHead:
    """A head for the batches above: 1 step of warm-up, 3 of collecting. Options: of the schedule, queue and config."""
    fields = {field.name for field in dataclasses.fields(Schedule)}
    schedule = {"warmup": 1, "collect": 3, "total": 60} | {k: v for k, v in options.items() if k in fields}
    queue = {k: v for k, v in options.items() if k.startswith("queue_") and k != "queue_size"}
    rest = {k: v for k, v in options.items() if k not in fields and k not in queue}
    settings = {"queue_size": 200, "grid_size": 6, "unlabeled_samples_per_image": 40} | rest
    config = BRPGConfig(**settings) if config is None else config
    return PrototypeHead(num_classes, dim, Schedule(**schedule), config, seed=seed, **queue)


def step(
    head: PrototypeHead, seed: int | None = None, *, absent: Iterable[int] = ()
) -> tuple[HeadOutput, LabeledBatch, UnlabeledBatch]:
    """One training step on made-up batches, by default those of the head's iteration."""
    seed = 10 * head.iteration if seed is None else seed
    sizes = {"num_classes": head.num_classes, "dim": head.feature_dim, "absent": absent}
    batches = labeled(seed, **sizes), unlabeled(seed, **sizes)
    return head(*batches), *batches


def run(head: PrototypeHead, steps: int, *, absent: Iterable[int] = ()) -> PrototypeHead:
    """The head after so many more training steps."""
    for _ in range(steps):
        step(head, absent=absent)
    return head


def learning_head(**options: Any) -> PrototypeHead:
    """A head that has clustered, at its second step of the learn phase."""
    return run(head(**options), 5)


def state(module: nn.Module) -> dict[str, Any]:
    """A copy of the module's state dict."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in module.state_dict().items()}


def same(first: object, second: object) -> bool:
    """Whether two state dicts (or what is in them) are bitwise equal."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(same(one, two) for one, two in zip(first, second, strict=True))
    return type(first) is type(second) and first == second


def samples(features: Tensor, classes: Tensor | int, groups: Tensor | int, confidence: Tensor | float = 1.0) -> Samples:
    """Rows for a queue; a single class, group or confidence holds for all of them."""
    count = len(features)
    classes, groups = (v if isinstance(v, Tensor) else torch.full((count,), v) for v in (classes, groups))
    if not isinstance(confidence, Tensor):
        confidence = torch.full((count,), float(confidence))
    return Samples(features, classes, groups, confidence, torch.tensor(0))


def filled_queue(groups: dict[tuple[int, int], Tensor], num_classes: int, **options: Any) -> FeatureQueue:
    """A queue with these rows (n, D) per (class, group), of confidence 0.5, 0.5 + 1/2n, ..."""
    rows = list(groups.values())
    options = {"queue_size": max(1, *(len(r) for r in rows))} | options
    queue = FeatureQueue(num_classes, rows[0].shape[1], **options)
    for (class_index, group), features in groups.items():
        confidence = 0.5 + 0.5 * torch.arange(len(features)) / max(1, len(features))
        queue.append(samples(features, class_index, group, confidence))
    return queue


def clusters(num_rows: int, num_clusters: int, dim: int, seed: int, spread: float = 1.0, offset: float = 0.0) -> Tensor:
    """Rows (n, D) about so many random centers, `spread` wide, `offset` from the origin."""
    random = generator(seed)
    middle = 3 * spread * torch.randn(num_clusters, dim, generator=random)
    index = torch.randint(num_clusters, (num_rows,), generator=random)
    return offset + middle[index] + spread * torch.randn(num_rows, dim, generator=random)


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
    assert list(out.metrics) == list(METRICS)
    for name, value in out.metrics.items():
        assert value.shape == (), name
        assert value.isfinite(), name
        assert not value.requires_grad, name
    for gradient in gradients(out, *batches):
        assert gradient.isfinite().all()


def random_bank(
    classes: int, slots: int, dim: int, seed: int, share: float = 0.7, **options: Any
) -> tuple[PrototypeBank, Tensor]:
    """A bank with the share of its prototypes present, and a generator-seeded mask."""
    random = torch.Generator().manual_seed(seed)
    bank = PrototypeBank(classes, dim, num_prototypes=(slots, slots), split_fraction=0.0, **options)
    vectors = torch.randn(classes, 2, slots, dim, generator=random)
    bank.set(vectors, torch.rand(classes, 2, slots, generator=random) < share)
    return bank, vectors
