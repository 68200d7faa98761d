"""The picture of a sweep: every run's scores, and where each class gains."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from brpg_lib.benchmarks import accuracy_rows as table

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple")
LINE, PLAIN = "dimgray", "darkgray"


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the picture."""
    rows, classes = table.rows(results), results[0]["class_names"]
    names = max(len(row.name) for row in rows)
    size = (10 + 0.06 * names + 0.5 * len(classes), 2.2 + 0.32 * len(rows))
    widths = (1.0, 1.0, max(1.0, 0.13 * len(classes)))
    figure, axes = plt.subplots(1, 3, figsize=size, layout="constrained", width_ratios=widths)
    for axis, (metric, name) in zip(axes, table.METRICS.items(), strict=False):
        draw_scores(axis, results, rows, metric)
        axis.set_title(name, fontsize=11)
    for axis in axes[1:]:
        axis.set_yticklabels([])
    draw_classes(axes[2], results, rows)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_scores(axis: Axes, results: Sequence[dict[str, Any]], rows: Sequence[table.Row], metric: str) -> None:
    """One line of dots per row, the mean as a bar; labels alone and all labels as lines through all."""
    for place, row in enumerate(rows):
        values = [r[metric] for r in table.of_row(results, row).values()]
        mean, color = statistics.mean(values), color_of(row, rows)
        axis.scatter(values, [place] * len(values), color=color, s=22, zorder=3)
        axis.vlines(mean, place - 0.3, place + 0.3, color=color, linewidth=3, zorder=2)
        if row in (table.FLOOR, table.CEILING):
            axis.axvline(mean, color=LINE, linewidth=1, linestyle=":", zorder=1)
    axis.set(yticks=range(len(rows)), yticklabels=[row.name for row in rows], xlabel="percent")
    axis.set_ylim(len(rows) - 0.5, -0.5)  # as the classes beside it
    axis.grid(axis="x", alpha=0.3)


def draw_classes(axis: Axes, results: Sequence[dict[str, Any]], rows: Sequence[table.Row]) -> None:
    """Mean gain of each class over what a row builds on: labels alone for a framework, the framework for a head."""
    names = results[0]["class_names"]
    gains = np.full((len(rows), len(names)), np.nan)
    for place, row in enumerate(rows):
        for c in range(len(names)):
            values = table.class_gains(results, row, c)
            if values and row != table.CEILING:
                gains[place, c] = statistics.mean(values)
    limit = max(1.0, float(np.nanmax(np.abs(gains)))) if np.isfinite(gains).any() else 1.0
    axis.imshow(gains, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for place, c in zip(*np.nonzero(np.isfinite(gains)), strict=True):
        value = gains[place, c]
        color = "white" if abs(value) > 0.6 * limit else "black"
        axis.text(c, place, f"{value:+.1f}", ha="center", va="center", fontsize=7, color=color)
    axis.set(yticks=range(len(rows)), yticklabels=[""] * len(rows), xticks=range(len(names)), xlabel="points of IoU")
    axis.set_xticklabels(names, rotation=45, ha="right", fontsize=8)
    axis.set_title("Gain of each class over what the row builds on", fontsize=11)


def color_of(row: table.Row, rows: Sequence[table.Row]) -> str:
    """One color per framework with a head; gray without."""
    if row.framework == "supervised":
        return LINE
    if row.variant == table.BASELINE:
        return PLAIN
    frameworks = table.unique(r.framework for r in rows if r.framework != "supervised")
    return COLORS[frameworks.index(row.framework) % len(COLORS)]
