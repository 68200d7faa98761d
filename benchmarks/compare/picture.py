"""A picture of a comparison: scores of each pair, the mean difference, and the classes."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import matplotlib
import numpy as np

from brpg_lib.benchmarks.compare import words
from brpg_lib.benchmarks.compare.analysis import Finding, ordered, strongest
from brpg_lib.benchmarks.compare.statistics import Estimate, text

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MOST_CLASSES = 40
LONGEST = 26
WITHOUT, WITH, CLEAR = "dimgray", "tab:blue", {1: "tab:green", -1: "tab:red", 0: "tab:blue"}


def save(finding: Finding, path: Path) -> None:
    """Draw and write."""
    figure = draw(finding)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw(finding: Finding) -> Figure:
    """The whole picture."""
    present = ordered(finding)
    chosen = strongest(present, MOST_CLASSES)
    height = max(5.0, 0.24 * len(chosen) + 1.8)
    figure = plt.figure(figsize=(12.5 if chosen else 7, height), layout="constrained")
    widths = (1, 1.1, 2.0) if chosen else (1, 1.1)
    axes = figure.subplots(1, len(widths), width_ratios=widths)
    verdict = words.sentences(finding.scores[0], len(finding.comparison.pairs))[0]
    title = f"{finding.comparison.name}\n{verdict}"
    wide = 110 if chosen else 70
    figure.suptitle("\n".join(textwrap.fill(line, wide) for line in title.splitlines()), fontsize=11)
    _draw_pairs(axes[0], finding)
    _draw_difference(axes[1], finding)
    if chosen:
        _draw_classes(axes[2], finding, [score.name for score in chosen], len(present))
    return figure


def _draw_pairs(axis: Axes, finding: Finding) -> None:
    """The scores of each pair, joined by a line."""
    name = finding.scores[0].name
    for pair in finding.comparison.pairs:
        values = [pair.before.scores[name], pair.after.scores[name]]
        axis.plot([0, 1], values, color="silver", zorder=1)
        axis.scatter([0, 1], values, color=[WITHOUT, WITH], s=28, zorder=2)
    labels = (_wrapped(finding.comparison.baseline, 14), _wrapped(finding.comparison.variant, 14))
    axis.set_xticks([0, 1], labels)
    axis.set(xlim=(-0.35, 1.35), ylabel=f"{name} (%)", title="each pair")
    axis.grid(axis="y", alpha=0.3)


def _draw_difference(axis: Axes, finding: Finding) -> None:
    """Each pair's difference, and the intervals of their mean by what they speak of."""
    score = finding.scores[0]
    differences = [pair.after.scores[score.name] - pair.before.scores[score.name] for pair in finding.comparison.pairs]
    spread = np.linspace(-0.15, 0.15, len(differences)) if len(differences) > 1 else np.zeros(1)
    axis.axhline(0, color="black", linewidth=1)
    axis.scatter(spread, differences, color="silver", edgecolor="gray", s=28, zorder=2)
    shown = [*score.estimates, *([finding.images] if finding.images is not None else [])]
    for place, estimate in enumerate(shown, 1):
        _draw_interval(axis, place, estimate)
    labels = ["pairs", *(_wrapped(estimate.scope, 13) for estimate in shown)]
    axis.set_xticks(range(len(labels)), labels, fontsize=8 if len(labels) > 2 else 9)
    axis.set(xlim=(-0.5, len(labels) - 0.4), ylabel="points", title=f"difference of {score.name}")
    axis.grid(axis="y", alpha=0.3)


def _draw_interval(axis: Axes, place: float, estimate: Estimate) -> None:
    color = CLEAR[estimate.sign]
    if estimate.known:
        axis.vlines(place, estimate.low, estimate.high, color=color, linewidth=2)
    axis.scatter([place], [estimate.mean], color=color, s=45, zorder=3)
    digits = text(estimate).partition(" ")[0]
    axis.annotate(digits, (place, estimate.mean), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)


def _draw_classes(axis: Axes, finding: Finding, names: list[str], count: int) -> None:
    """Differences of the classes, the largest gain on top, with intervals that hold simultaneously."""
    scores = {score.name: score for score in finding.classes}
    axis.axvline(0, color="black", linewidth=1)
    reaches = []
    for place, name in enumerate(names):
        estimate = scores[name].estimate
        assert estimate is not None
        color = CLEAR[estimate.sign]
        if estimate.known:
            axis.hlines(place, estimate.low, estimate.high, color=color, linewidth=1.5, alpha=0.7)
            reaches.append(max(abs(estimate.low), abs(estimate.high)))
        axis.scatter([estimate.mean], [place], color=color, s=24, zorder=3)
    labels = [_short(name) for name in names]
    axis.set_yticks(range(len(names)), labels, fontsize=9 if len(names) <= 25 else 8)
    axis.set(ylim=(len(names) - 0.4, -0.6), xlabel="points of IoU")
    level = finding.scores[0].headline.level
    part = f"{len(names)} of {count} classes that differ most" if len(names) < count else f"{count} classes"
    held = f"intervals hold simultaneously at {level * 100:g}%" if reaches else "one pair: no intervals"
    axis.set_title(f"{part}\n{held}", fontsize=10)
    _limit(axis, [scores[name].estimate for name in names], reaches)
    axis.grid(axis="x", alpha=0.3)


def _limit(axis: Axes, estimates: list[Estimate | None], reaches: list[float]) -> None:
    """A few very wide intervals run out of the picture, instead of squeezing all others."""
    if not reaches:
        return
    middle = float(np.median(reaches))
    farthest = max(abs(estimate.mean) for estimate in estimates if estimate is not None)
    limit = min(max(reaches), max(3 * middle, 1.2 * farthest), 100)
    if not (math.isfinite(limit) and limit > 0):
        return
    axis.set_xlim(-1.05 * limit, 1.05 * limit)
    for place, estimate in enumerate(estimates):
        if estimate is not None and estimate.known:
            for marker, end in (("<", -estimate.low), (">", estimate.high)):
                if end > 1.05 * limit:
                    side = -1 if marker == "<" else 1
                    axis.scatter([1.03 * side * limit], [place], marker=marker, color=CLEAR[estimate.sign], s=24)


def _short(name: str) -> str:
    plain, half = " ".join(name.split()), LONGEST // 2
    short = plain if len(plain) <= LONGEST else f"{plain[: half - 1]}…{plain[-half:]}"
    return short.replace("$", r"\$")


def _wrapped(name: str, width: int) -> str:
    lines = textwrap.wrap(name.replace("$", r"\$"), width) or [""]
    return "\n".join([*lines[:4], "…"] if len(lines) > 5 else lines)
