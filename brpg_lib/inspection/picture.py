"""The prototypes of a head as a picture."""

from __future__ import annotations

import matplotlib
import numpy as np

from brpg_lib.inspection.findings import Findings
from brpg_lib.inspection.record import HeadRecord

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WRITTEN = 22
"""Classes up to which the matrix has its numbers written in it."""


def draw(head: HeadRecord, found: Findings, title: str) -> Figure:
    """Prototypes of each class, and how similar the classes are."""
    size = max(5.0, (0.36 if head.num_classes <= WRITTEN else 0.18) * head.num_classes)
    figure = plt.figure(figsize=(size + 9, size + 2), layout="constrained")
    high, low = found.prototypes.sum(0).tolist()
    last = f"iteration {head.settings['iteration']}, " if "iteration" in head.settings else ""
    figure.suptitle(
        f"{title}\n{last}phase {head.phase}: {high} prototypes of high confidence, {low} of low", fontsize=12
    )
    bars, matrix = figure.subplots(1, 2, width_ratios=(6, size + 1))
    _draw_bars(bars, head, found)
    image = _draw_matrix(matrix, head, found)
    figure.colorbar(image, ax=matrix, label="cosine of the most similar prototypes", shrink=0.8)
    return figure


def _font(head: HeadRecord) -> float:
    """Size of the names of classes."""
    return 8.0 if head.num_classes <= WRITTEN else 6.0


def _draw_bars(axis: Axes, head: HeadRecord, found: Findings) -> None:
    places = np.arange(head.num_classes)
    high, low = found.prototypes.numpy().T
    axis.barh(places, high, color="tab:blue", label="high confidence")
    axis.barh(places, low, left=high, color="tab:orange", label="low confidence")
    for counts, color, label in ((found.dead, "black", "dead"), (found.collapsed, "tab:red", "collapsed")):
        if counts is not None and bool(counts.any()):
            offset = 0.2 if label == "collapsed" else -0.2
            axis.barh(places + offset, counts.numpy(), height=0.2, color=color, label=label)
    axis.set_yticks(places, [head.name(index) for index in range(head.num_classes)], fontsize=_font(head))
    axis.set(xlabel="prototypes", title="Prototypes per class", ylim=(head.num_classes - 0.4, -0.6))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.figure.legend(loc="outside lower left", ncols=4, fontsize=8)


def _draw_matrix(axis: Axes, head: HeadRecord, found: Findings) -> matplotlib.image.AxesImage:
    values = np.ma.masked_invalid(found.similarity.numpy())
    off = values[~np.eye(len(values), dtype=bool)].compressed()
    lowest = float(off.min()) if off.size else -1.0
    image = axis.imshow(values, cmap="viridis", vmin=lowest, vmax=1.0)
    names = [head.name(index) for index in range(head.num_classes)]
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=_font(head))
    axis.set_yticks(range(len(names)), names, fontsize=_font(head))
    axis.set_title("Similarity of classes")
    if len(names) <= WRITTEN:
        for (row, column), value in np.ndenumerate(values.filled(np.nan)):
            if row != column and np.isfinite(value):
                bright = value > lowest + 0.7 * (1 - lowest)
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6,
                          color="black" if bright else "white")  # fmt: skip
    return image
