"""Mean IoU over whole images and near class boundaries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from brpg_lib.examples.training.data.augment import IGNORE_INDEX


@dataclass(frozen=True)
class Scores:
    """IoU of one set of predictions.

    Attributes:
        iou: Per class, in percent; None where the class has no ground-truth pixel.
        boundary_iou: The same, over the pixels near a ground-truth boundary only.
    """

    iou: list[float | None]
    boundary_iou: list[float | None]

    @property
    def miou(self) -> float:
        """Mean over the classes that occur."""
        return mean_of_present(self.iou)

    @property
    def boundary_miou(self) -> float:
        """Mean over the classes that occur near a boundary."""
        return mean_of_present(self.boundary_iou)


def mean_of_present(values: list[float | None]) -> float:
    """Mean of the values that are not None; 0 if there are none."""
    present = [v for v in values if v is not None]
    return sum(present) / len(present) if present else 0.0


def boundary_band(labels: Tensor, radius: int) -> Tensor:
    """Pixels within ``radius`` of a pixel of another class, ``(B, H, W)`` bool. Ignored pixels make no boundary."""
    ignored = labels == IGNORE_INDEX
    top = _highest_near(labels.masked_fill(ignored, -1), radius)
    bottom = -_highest_near(-labels, radius)  # 255 is larger than every class already
    return (top > bottom) & ~ignored


def _highest_near(labels: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(labels.float()[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0]


def iou_per_class(confusion: Tensor) -> list[float | None]:
    """IoU in percent from a confusion matrix (rows: truth).

    A class without ground truth gets None and stays out of the mean, so that two sets of predictions are averaged
    over the same classes; its false positives still count against the classes they cover.
    """
    confusion = confusion.cpu().double()
    hits, truth = confusion.diag(), confusion.sum(1)
    union = truth + confusion.sum(0) - hits
    return [100 * (h / u).item() if t > 0 else None for h, u, t in zip(hits, union, truth, strict=True)]


def evaluate(
    pairs: Iterable[tuple[Tensor, Tensor]], num_classes: int, device: torch.device | str = "cpu", radius: int = 2
) -> Scores:
    """Scores predictions against labels.

    Args:
        pairs: Predictions and labels, both ``(B, H, W)`` int64.
        num_classes: C.
        device: Where to count. Processes of one group add up what each of them counts.
        radius: Half width of the boundary band in pixels.
    """
    whole, band = (MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE_INDEX).to(device) for _ in range(2))
    for predictions, labels in pairs:
        predictions, labels = predictions.to(device), labels.to(device)
        whole.update(predictions, labels)
        band.update(predictions, torch.where(boundary_band(labels, radius), labels, IGNORE_INDEX))
    return Scores(iou_per_class(whole.compute()), iou_per_class(band.compute()))
