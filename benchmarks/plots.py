"""One picture per benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

from brpg_lib.benchmarks import tables as show
from brpg_lib.benchmarks.clustering import OURS
from brpg_lib.benchmarks.command import Result
from brpg_lib.benchmarks.growth import FACTORS
from brpg_lib.benchmarks.step import GRAPH
from brpg_lib.benchmarks.training_overhead import BASELINE, BRANCH, HEAD

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OWN, OTHER, LINE = "tab:blue", "darkgray", "tab:orange"


def draw(name: str, result: Result, path: Path) -> None:
    """Write the picture of a benchmark's result."""
    figure = PICTURES[name](result)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def bars(axis: Axes, values: dict[str, float], labels: dict[str, str]) -> None:
    """Horizontal bars on a log scale, the first on top, each with its label at the end."""
    names = list(values)
    colors = [OWN if name.startswith("brpg-lib") else OTHER for name in names]
    drawn = axis.barh(range(len(names)), list(values.values()), color=colors)
    axis.bar_label(drawn, [labels[name] for name in names], padding=4, fontsize=9)
    axis.set(xscale="log", yticks=range(len(names)), yticklabels=names)
    axis.set_xlim(right=max(values.values()) * 30)  # room for the labels
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def draw_clustering(result: Result) -> Figure:
    """Time of every contender, beside that of reading the queues once."""
    ran = {name: entry for name, entry in result["contenders"].items() if "seconds" in entry}
    figure, axis = plt.subplots(figsize=(10, 1.4 + 0.42 * len(ran)), layout="constrained")
    labels = {name: f"{show.seconds(e['seconds'])}, inertia {e['inertia_over_ours']:.3f}" for name, e in ran.items()}
    bars(axis, {name: entry["seconds"] for name, entry in ran.items()}, labels)
    floor = result["floor"]["seconds"]
    axis.axvline(floor, color=LINE, label=f"reading all rows once, {show.seconds(floor)}")
    axis.set_xlim(left=floor / 2)
    queue = result["queue"]
    axis.set(xlabel="seconds (log scale)")
    axis.set_title(f"Clustering {queue['groups']} queues of {queue['rows']} x {queue['dim']}; "
                   f"inertia relative to {result['reference'].removeprefix(OURS)}", fontsize=11)  # fmt: skip
    figure.legend(loc="outside lower right", fontsize=9, frameon=False)
    return figure


def draw_step(result: Result) -> Figure:
    """Time and memory of every formulation."""
    ran = {name: step for name, step in result["steps"].items() if "seconds" in step}
    figure, (time, memory) = plt.subplots(1, 2, figsize=(12, 1.6 + 0.42 * len(ran)), layout="constrained", sharey=True)
    bars(time, {n: s["seconds"] for n, s in ran.items()}, {n: show.seconds(s["seconds"]) for n, s in ran.items()})
    time.set(xlabel="seconds (log scale)", title="Time of a learn step")
    known = {n: s["extra_bytes"] for n, s in ran.items() if s["extra_bytes"] and n != GRAPH}
    if known:
        places = [list(ran).index(name) for name in known]
        drawn = memory.barh(places, list(known.values()), color=[OWN if "brpg" in name else OTHER for name in known])
        memory.bar_label(drawn, [show.bytes_(value) for value in known.values()], padding=4, fontsize=9)
        memory.set(xscale="log")
        memory.set_xlim(right=max(known.values()) * 10)
    memory.set(xlabel="bytes (log scale)", title="Peak memory above the level before it")
    memory.grid(axis="x", alpha=0.3)
    memory.set_axisbelow(True)
    return figure


def draw_training_overhead(result: Result) -> Figure:
    """Seconds per step of each trainer, without, with the branch and with the head."""
    figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
    trainers = [name for name, trainer in result["trainers"].items() if "overhead_percent" in trainer]
    for place, (variant, color) in enumerate(((BASELINE, OTHER), (BRANCH, "lightskyblue"), (HEAD, OWN))):
        entries = [result["trainers"][name][variant] for name in trainers]
        seconds = [entry["seconds"] for entry in entries]
        spread = [[e["seconds"] - e["fastest"] for e in entries], [e["slowest"] - e["seconds"] for e in entries]]
        at = [i + 0.27 * (place - 1) for i in range(len(trainers))]
        axis.bar(at, seconds, 0.25, yerr=spread, capsize=3, ecolor="dimgray", color=color, label=variant)
    labels = [f"{name} ({result['trainers'][name]['overhead_percent']:+.1f}%)" for name in trainers]
    axis.set(xticks=range(len(trainers)), xticklabels=labels, ylabel="seconds per step")
    axis.set_title(f"{result['network']}, {result['images']} + {result['images']} images of {result['crop']}x"
                   f"{result['crop']}; lines: fastest to slowest run", fontsize=11)  # fmt: skip
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(fontsize=9, loc="upper left")
    return figure


def draw_growth(result: Result) -> Figure:
    """Both costs against size, with a line of what linear growth would be."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for axis, cost in zip(axes, ("clustering", "learn step"), strict=True):
        lines = {name: line for name, line in result[cost].items() if "seconds" in line}
        for (name, line), marker in zip(lines.items(), "os^", strict=False):
            sizes = line["sizes"]
            label = f"{name}, {sizes[0]} to {sizes[-1]}: exponent {line['exponent']:.2f}"
            axis.plot([size / sizes[0] for size in sizes], line["seconds"], marker=marker, label=label)
        start = min((line["seconds"][0] for line in lines.values()), default=1.0)
        axis.plot(FACTORS, [start * factor for factor in FACTORS], "--", color="gray", label="linear growth (slope 1)")
        axis.set(xscale="log", yscale="log", xlabel="size, relative to the smallest", ylabel="seconds")
        axis.set_title(f"Growth of the {cost}", fontsize=11)
        axis.set_xticks(FACTORS, [f"{factor}x" for factor in FACTORS])
        axis.minorticks_off()
        seconds_axis(axis)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9, loc="upper left")
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
    return figure


def seconds_axis(axis: Axes) -> None:
    """Ticks at 1, 2 and 5 times each power of ten, with their unit."""
    low, high = axis.get_ylim()
    ticks = [m * 10.0**e for e in range(-7, 5) for m in (1, 2, 5) if low <= m * 10.0**e <= high * (high / low) ** 0.45]
    axis.set_yticks(ticks, [f"{show.seconds(tick * 1.0000001)}".replace(".00", "").replace(".0", "") for tick in ticks])


PICTURES: dict[str, Callable[[Result], Figure]] = {
    "clustering": draw_clustering,
    "step": draw_step,
    "training_overhead": draw_training_overhead,
    "growth": draw_growth,
}
