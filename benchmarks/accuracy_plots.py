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
from matplotlib.colors import to_rgb

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple")
LINE, PLAIN = "dimgray", "darkgray"


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the picture."""
    rows = table.rows(results)
    names = max(len(row.name) for row in rows)
    height = 1.8 + 0.34 * max(len(rows), len(results[0]["class_names"]))
    figure, axes = plt.subplots(1, 3, figsize=(13 + 0.06 * names, height), layout="constrained")
    for axis, (metric, name) in zip(axes, table.METRICS.items(), strict=False):
        draw_scores(axis, results, rows, metric)
        axis.set_title(name, fontsize=11)
    axes[1].set_yticklabels([])
    draw_classes(axes[2], results, rows)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_scores(axis: Axes, results: Sequence[dict[str, Any]], rows: Sequence[table.Row], metric: str) -> None:
    """One line of dots per row, the mean as a bar; labels alone and all labels as lines through all."""
    for place, row in enumerate(rows):
        values = [r[metric] for r in table.of_row(results, row).values()]
        mean, color = statistics.mean(values), color_of(row, rows)
        axis.scatter(values, [place] * len(values), color=[color] * len(values), s=22, zorder=3)
        axis.vlines(mean, place - 0.3, place + 0.3, color=color, linewidth=3, zorder=2)
        if row in (table.FLOOR, table.CEILING):
            axis.axvline(mean, color=LINE, linewidth=1, linestyle=":", zorder=1)
    axis.set(yticks=range(len(rows)), yticklabels=[row.name for row in rows], xlabel="percent")
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)


def draw_classes(axis: Axes, results: Sequence[dict[str, Any]], rows: Sequence[table.Row]) -> None:
    """Mean gain of each class: unlabeled images over labels alone (hollow), the head over its framework (filled)."""
    names = results[0]["class_names"]
    shown = [row for row in rows if row.framework != "supervised"]
    width = 0.8 / max(1, len(shown))
    for index, row in enumerate(shown):
        gains = [table.class_gains(results, row, c) for c in range(len(names))]
        means = [statistics.mean(values) if values else np.nan for values in gains]
        plain = row.variant == table.BASELINE
        axis.barh(
            np.arange(len(names)) + (index - (len(shown) - 1) / 2) * width,
            means,
            height=width,
            color="white" if plain else color_of(row, rows),
            edgecolor=color_of(row, rows, plain=False),
            label=f"{row.name}, over {row.base.name if row.base else ''}",
        )
    axis.axvline(0, color=LINE, linewidth=1)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="points of IoU")
    axis.set_title("Gain per class, mean over runs", fontsize=11)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    if shown:
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def color_of(row: table.Row, rows: Sequence[table.Row], plain: bool = True) -> tuple[float, float, float]:
    """One hue per framework, lighter from head to head; gray without head where ``plain``."""
    if row.framework == "supervised":
        return to_rgb(LINE)
    frameworks = table.unique(r.framework for r in rows if r.framework != "supervised")
    if plain and row.variant == table.BASELINE:
        return to_rgb(PLAIN)
    heads = [r for r in rows if r.framework == row.framework and r.variant != table.BASELINE]
    lighter = 0.65 * heads.index(row) / len(heads) if row in heads else 0.0
    red, green, blue = (c + (1 - c) * lighter for c in to_rgb(COLORS[frameworks.index(row.framework) % len(COLORS)]))
    return red, green, blue
