"""Predictions for whole images, and scores over the images of all processes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from brpg_lib.examples.training.data.batches import Pairs
from brpg_lib.examples.training.metrics import Scores, evaluate
from brpg_lib.examples.training.networks.base import Segmenter
from brpg_lib.examples.training.prediction import predict
from brpg_lib.examples.training.processes import Processes


def classes_of(model: Segmenter, image: Tensor, device: torch.device, window: int | None = None) -> Tensor:
    """Classes ``(H, W)`` int64, on the device, of one image.

    Args:
        model: In eval mode.
        image: ``(3, H, W)`` uint8.
        device: Of the model.
        window: See :func:`~brpg_lib.examples.training.prediction.predict`.
    """
    return predict(model, image[None].to(device), window=window).probabilities[0].argmax(0)


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
        window: See :func:`classes_of`.
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
    predicted = ((classes_of(model, image, processes.device, window)[None], label[None]) for image, label in loader)
    return evaluate(predicted, num_classes, processes.device)
