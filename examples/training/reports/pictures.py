"""What the pictures of several commands share."""

from __future__ import annotations

import matplotlib
import numpy as np
from torch import Tensor

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.batches import SegmentationData

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def class_colors(count: int) -> np.ndarray:
    """``(count + 1, 3)``: one color per class, then white for ignored pixels."""
    first, second = (plt.get_cmap(name)(range(20))[:, :3] for name in ("tab20", "tab20b"))
    distinct = [tuple(c) for c in (*first[::2], *first[1::2], *second) if max(c) - min(c) > 0.05]
    colors = [(0.25, 0.25, 0.25), *(distinct[i % len(distinct)] for i in range(count - 1))]
    return np.array([*colors, (1.0, 1.0, 1.0)])


def colors_of(data: SegmentationData) -> np.ndarray:
    """``(C + 1, 3)``: the colors of a dataset's classes, its own if it has some, then white for ignored pixels."""
    if not data.colors:
        return class_colors(len(data.class_names))
    return np.concatenate([np.array(data.colors) / 255, np.ones((1, 3))])


def paint(label: Tensor, palette: np.ndarray) -> np.ndarray:
    """Label map to colors."""
    return palette[np.where(label.numpy() == IGNORE_INDEX, len(palette) - 1, label.numpy())]


def smoothed(history: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and running mean of a loss."""
    if not history:
        return np.zeros(0), np.zeros(0)
    steps, values = np.array(history, dtype=float).T
    width = max(1, len(values) // 25)
    mean = np.convolve(values, np.ones(width) / width, mode="valid")
    return steps[width - 1 :], mean


def positive(values: np.ndarray) -> np.ndarray:
    """For a logarithmic axis: what is 0 there is no point, instead of a small number that it never was."""
    return np.where(values > 0, values, np.nan)
