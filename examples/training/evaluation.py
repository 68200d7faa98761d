"""Predictions for whole images, and scores over the images of all processes."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from brpg_lib.examples.training.data.augment import to_float
from brpg_lib.examples.training.data.batches import Pairs
from brpg_lib.examples.training.metrics import Scores, evaluate
from brpg_lib.examples.training.networks.base import Segmenter
from brpg_lib.examples.training.processes import Processes


@torch.no_grad()
def predict(model: Segmenter, image: Tensor, device: torch.device, window: int | None = None) -> Tensor:
    """Classes ``(H, W)`` int64, on the device, of one image.

    Args:
        model: In eval mode.
        image: ``(3, H, W)`` uint8.
        device: Of the model.
        window: None to show the network the whole image, or the side of windows that move by two thirds of it;
            where they overlap, their probabilities are averaged.
    """
    whole = to_float(image[None]).to(device)
    if window is None:
        classes: Tensor = model(whole).logits.argmax(1)[0]
        return classes
    total: Tensor | None = None
    for rows in windows(whole.shape[2], window):
        for columns in windows(whole.shape[3], window):
            part = model(whole[..., rows, columns]).logits.softmax(1)[0]
            if total is None:
                total = part.new_zeros(len(part), *image.shape[-2:])
            total[:, rows, columns] += part
    assert total is not None
    return total.argmax(0)


def windows(length: int, window: int) -> list[slice]:
    """Windows that cover a length, the last one flush with its end."""
    if length <= window:
        return [slice(0, length)]
    stride = math.ceil(window * 2 / 3)
    count = math.ceil((length - window) / stride) + 1
    return [slice(start, start + window) for start in (min(i * stride, length - window) for i in range(count))]


def score(
    model: Segmenter,
    pairs: Pairs,
    num_classes: int,
    processes: Processes,
    window: int | None = None,
    workers: int = 0,
) -> Scores:
    """Scores of all images, equal in all processes; each predicts its share of them.

    Args:
        model: In eval mode.
        pairs: Images and labels.
        num_classes: C.
        processes: Who shares the work.
        window: See :func:`predict`.
        workers: Processes that read images, for each of these.
    """
    own = range(processes.rank, len(pairs), processes.ranks)
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        cast(Dataset[tuple[Tensor, Tensor]], pairs),
        batch_size=None,
        sampler=own,
        num_workers=workers,
        generator=torch.Generator(),
    )
    predicted = ((predict(model, image, processes.device, window)[None], label[None]) for image, label in loader)
    return evaluate(predicted, num_classes, processes.device)
