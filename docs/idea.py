"""Draws ``docs/pictures/idea.png``: the idea on made-up pixels of two classes, computed by the library itself.

Run it with ``python docs/idea.py``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from brpg_lib import FeatureQueue, OnlineClusterer, PrototypeBank, Samples

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

PICTURE = Path(__file__).parent / "pictures/idea.png"
COLORS = ("#2f6f9f", "#d9722e")
PALE = ("#b9d3e6", "#f6cfb2")
SIZE, DEPTH = 56, 2.5
"""Pixels of a side; the third coordinate of all features, which makes angles between them distances in the plane."""


def pixels() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels ``(n,)``, confidence ``(n,)`` and features ``(n, 2)`` of an object before a background.

    Features of a class lie along an arc, whose end is near the other class: there are the pixels of the boundary.
    """
    random = np.random.default_rng(3)
    y, x = (np.mgrid[0:SIZE, 0:SIZE] - SIZE / 2) / (SIZE / 2)
    angle = np.arctan2(y, x)
    distance = (0.56 + 0.13 * np.sin(3 * angle + 0.5) - np.hypot(x, y)).ravel()
    labels = (distance > 0).astype(int)
    inside = np.clip(np.abs(distance) / 0.32, 0, 1)
    confidence = np.clip(0.45 + 0.55 * inside + 0.04 * random.standard_normal(len(inside)), 0, 1)
    edge = 1 - inside  # 1 at the boundary
    background = np.stack([1.55 * edge - 0.9, 0.35 - np.sin(edge * np.pi / 2)], axis=1)
    middle = np.stack([0.95 - edge, 0.6 - 0.5 * edge], axis=1)
    features = np.where(labels[:, None] == 1, middle, background)
    return labels, confidence, features + 0.11 * random.standard_normal(features.shape)


def bank_of(labels: np.ndarray, groups: np.ndarray, features: np.ndarray, counts: list[int]) -> PrototypeBank:
    """Prototypes of pixels: ``counts`` for the confident and the uncertain group of each class."""
    rows = torch.tensor(np.column_stack([features, np.full(len(features), DEPTH)]), dtype=torch.float32)
    queue = FeatureQueue(2, 3, queue_size=len(rows))
    classes, confident = torch.tensor(labels), torch.tensor(groups)
    queue.append(Samples(rows, classes, confident, torch.ones(len(rows)), torch.tensor(0)))
    bank = PrototypeBank(2, 3)
    found = OnlineClusterer(2)(queue, torch.tensor([counts, counts]))
    bank.set(found.vectors, found.mask)
    return bank


def classified(bank: PrototypeBank, points: np.ndarray) -> Tensor:
    """The class of the nearest prototype of points ``(n, 2)``."""
    rows = torch.tensor(np.column_stack([points, np.full(len(points), DEPTH)]), dtype=torch.float32)
    return bank.classify(rows)


def draw() -> None:
    """Draw the picture."""
    labels, confidence, features = pixels()
    uncertain = (confidence < 0.8).astype(int)
    means = bank_of(labels, np.zeros_like(labels), features, [1, 0])
    bank = bank_of(labels, uncertain, features, [2, 2])
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.3), width_ratios=(0.8, 1, 1), layout="constrained")

    tones = np.array([[matplotlib.colors.to_rgb(c[k]) for c in (COLORS, PALE)] for k in (0, 1)])
    axes[0].imshow(tones[labels, uncertain].reshape(SIZE, SIZE, 3))
    axes[0].set_title("1. The network is sure of most pixels,\nand unsure near the boundary (pale)")

    for axis in axes[1:]:
        for label in (0, 1):
            for pale, tone in ((0, COLORS), (1, PALE)):
                chosen = (labels == label) & (uncertain == pale)
                axis.scatter(*features[chosen].T, s=5, color=tone[label], linewidths=0)
    _boundary(axes[1], means, ":")
    _prototypes(axes[1], means)
    axes[1].set_title("2. One center per class: the line between\nthe classes cuts through their pixels")
    _boundary(axes[2], bank, "-")
    _prototypes(axes[2], bank)
    _pulls(axes[2], bank, labels, features)
    axes[2].set_title(
        "3. Centers of sure and of unsure pixels: the loss\npulls every pixel to the nearest of its class"
    )
    for bank_, axis in ((means, axes[1]), (bank, axes[2])):
        wrong = float((classified(bank_, features).numpy() != labels).mean())
        axis.set_xlabel(f"features of the pixels; {wrong:.0%} on the wrong side")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.title.set_fontsize(10.5)
    axes[0].set_xlabel("two classes in an image")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=100)


def _boundary(axis: Axes, bank: PrototypeBank, style: str) -> None:
    """Where the nearest prototype changes its class."""
    x, y = np.linspace(-1.35, 1.35, 240), np.linspace(-1.15, 1.05, 240)
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    axis.contour(x, y, classified(bank, grid).reshape(len(y), len(x)), [0.5], colors="black", linestyles=style)
    axis.set_xlim(x[0], x[-1])
    axis.set_ylim(y[0], y[-1])


def _prototypes(axis: Axes, bank: PrototypeBank) -> None:
    """Stars: filled for confident groups, white for uncertain ones."""
    for label in (0, 1):
        for group, fill in ((0, COLORS[label]), (1, "white")):
            vectors = bank.prototypes[label, group][bank.mask[label, group]]
            places = (vectors[:, :2] / vectors[:, 2:] * DEPTH).numpy()
            axis.scatter(*places.T, marker="*", s=260, color=fill, edgecolors="black", linewidths=1.2, zorder=3)


def _pulls(axis: Axes, bank: PrototypeBank, labels: np.ndarray, features: np.ndarray) -> None:
    """Arrows from a few pixels towards the nearest prototype of their class."""
    for index in np.random.default_rng(5).permutation(len(labels))[:70]:
        label, start = labels[index], features[index]
        own = bank.prototypes[label][bank.mask[label]]
        places = (own[:, :2] / own[:, 2:] * DEPTH).numpy()
        end = places[np.linalg.norm(places - start, axis=1).argmin()]
        if np.linalg.norm(end - start) > 0.2:
            axis.annotate(
                "", start + 0.62 * (end - start), start, arrowprops={"arrowstyle": "->", "color": "0.15", "lw": 1}
            )


if __name__ == "__main__":
    draw()
