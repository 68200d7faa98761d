"""What trainings without and with the head came to: means, paired differences with their intervals, one picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from brpg_lib.benchmarks.compare.statistics import LEVEL, mean_with_interval, paired_differences
from brpg_lib.benchmarks.tables import Table
from brpg_lib.files import write_atomically

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Results = Sequence[dict[str, Any]]
PAGE, PICTURE = "accuracy.md", "accuracy.png"
BASELINE = "no head"
METRICS = {"miou": "mIoU", "boundary_miou": "boundary IoU"}
MOST_JOINED = 6
COLORS = {BASELINE: "darkgray", "BRPG": "tab:blue"}


def write(results: Results, folder: Path) -> None:
    """The page, and its picture."""
    draw(results).savefig(folder / PICTURE, dpi=110)
    plt.close("all")
    write_atomically(page(results), folder / PAGE)


def page(results: Results) -> str:
    """All tables in Markdown."""
    first = results[0]
    where, settings = first["environment"], first["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    parts = [
        "# Accuracy without and with the head",
        f"{len(results)} trainings of {settings['iterations']} steps or as listed, on {where['device']}, "
        f"{where['threads']} threads; {versions}.",
        f"![Scores]({PICTURE})",
        *(table.markdown().strip() for table in tables(results)),
    ]
    return "\n\n".join(parts) + "\n"


def tables(results: Results) -> list[Table]:
    """Scores of each framework and variant, and of each class."""
    return [scores(results), classes(results)]


def scores(results: Results) -> Table:
    """Means over seeds and splits, and differences to the trainings without head on the same batches."""
    table = Table(
        f"Percent, mean and standard deviation over runs; gain: mean of paired differences with its "
        f"{LEVEL:.0%} interval",
        ("", "runs", *(f"{name}{what}" for name in METRICS.values() for what in ("", ", gain")), "seconds", "memory"),
    )
    for framework in unique(r["settings"]["framework"] for r in results):
        for variant in unique(r["variant"] for r in results):
            chosen = [r for r in results if (r["settings"]["framework"], r["variant"]) == (framework, variant)]
            if not chosen:
                continue
            cells = [f"{framework}, {variant}", str(len(chosen))]
            for metric in METRICS:
                cells.append(mean_and_deviation([r[metric] for r in chosen]))
                cells.append(
                    "" if variant == BASELINE else mean_with_interval(differences(results, framework, variant, metric))
                )
            cells.append(f"{statistics.mean(r['seconds'] for r in chosen):.0f}")
            cells.append(f"{statistics.mean(r['peak_memory_mb'] for r in chosen):.0f} MB")
            table.rows.append(cells)
    seeds = ", ".join(str(seed) for seed in unique(r["settings"]["seed"] for r in results))
    table.notes.append(f"Seeds {seeds}. Both runs of a pair share initial weights, batches and augmentations.")
    table.notes.append(
        "The interval is Student's, of the mean over runs: it speaks of other seeds (and splits), not of other data."
    )
    return table


def classes(results: Results) -> Table:
    """Mean gain of each class, of the head as it is."""
    frameworks = unique(r["settings"]["framework"] for r in results)
    table = Table("IoU per class without head, and mean gain with it", ("class", *frameworks))
    for index, name in enumerate(results[0]["class_names"]):
        row = [name]
        for framework in frameworks:
            pairs = [
                (before["iou"][index], after["iou"][index])
                for before, after in paired(results, framework, "BRPG")
                if None not in (before["iou"][index], after["iou"][index])
            ]
            if pairs:
                level, gain = (statistics.mean(column) for column in zip(*((b, a - b) for b, a in pairs), strict=True))
                row.append(f"{level:.1f} {gain:+.1f}")
            else:
                row.append("")
        table.rows.append(row)
    return table


Key = tuple[Any, ...]


def paired(results: Results, framework: str, variant: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Trainings without head and of a variant that share everything else."""
    before, after = by_key(results, framework, BASELINE), by_key(results, framework, variant)
    return [(before[key], result) for key, result in after.items() if key in before]


def by_key(results: Results, framework: str, variant: str) -> dict[Key, dict[str, Any]]:
    """Trainings of a framework and variant by what partners share."""
    return {
        tuple(result["settings"][name] for name in ("data", "split", "seed")): result
        for result in results
        if (result["settings"]["framework"], result["variant"]) == (framework, variant)
    }


def differences(results: Results, framework: str, variant: str, metric: str) -> list[float]:
    """Gain of each pair, in points."""
    before, after = (
        {key: result[metric] for key, result in by_key(results, framework, name).items()}
        for name in (BASELINE, variant)
    )
    return list(paired_differences(before, after).values())


def mean_and_deviation(values: list[float]) -> str:
    """``mean ± standard deviation``."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def draw(results: Results) -> Any:
    """Scores of every run, pairs joined by a line."""
    figure, axes = plt.subplots(1, len(METRICS), figsize=(11, 4.5), layout="constrained")
    for axis, (metric, name) in zip(axes, METRICS.items(), strict=True):
        draw_metric(axis, results, metric)
        axis.set(title=name, ylabel="percent")
    return figure


def draw_metric(axis: Axes, results: Results, metric: str) -> None:
    """One column per framework and variant; many lines from one column would hide what they join."""
    columns = unique((r["settings"]["framework"], r["variant"]) for r in results)
    place = {column: index for index, column in enumerate(columns)}
    for framework, variant in columns:
        for before, after in paired(results, framework, variant):
            if variant != BASELINE and len(columns) <= MOST_JOINED:
                x = [place[framework, BASELINE], place[framework, variant]]
                axis.plot(x, [before[metric], after[metric]], color="lightgray", zorder=1)
        values = [r[metric] for r in results if (r["settings"]["framework"], r["variant"]) == (framework, variant)]
        color = COLORS.get(variant, "tab:cyan")
        at = place[framework, variant]
        axis.scatter([at] * len(values), values, color=color, zorder=2)
        axis.hlines(statistics.mean(values), at - 0.3, at + 0.3, color=color, linewidth=3, zorder=2)
    names = [f"{framework}\n{variant}" for framework, variant in columns]
    axis.set_xticks(range(len(columns)), names, rotation=0 if len(columns) <= 6 else 90, fontsize=8)
    axis.grid(axis="y", alpha=0.3)


def unique(values: Iterable[Any]) -> list[Any]:
    """In the order of their first appearance."""
    return list(dict.fromkeys(values))
