"""What a demo shows: a table, metrics.json and report.png."""

from __future__ import annotations

import json
import platform
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor

import brpg_lib
from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.batches import SegmentationData
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.examples.training.reports.pictures import colors_of, paint, positive, smoothed
from brpg_lib.files import write_atomically

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

Results = dict[str, dict[str, Any]]
NAMES = {"labels": "labels alone", "unlabeled": "with unlabeled images", "head": "with the head too"}
SHORT = {"labels": "labels alone", "unlabeled": "+ unlabeled", "head": "+ head"}
COLORS = {"labels": "black", "unlabeled": "tab:orange", "head": "tab:blue", "prototype": "tab:green"}
PAGES = METRICS, PICTURE = "metrics.json", "report.png"
FIXED, BROKEN, BOTH_WRONG = "#1a9850", "#d73027", "#e0e0e0"
EXAMPLES = 6
LINE = 150
"""Letters of a headline's line."""
SCORES = {"miou": "mIoU", "boundary_miou": "boundary IoU"}


def write_report(results: Results, recipe: Recipe, data: SegmentationData, folder: Path, console: Console) -> None:
    """Writes metrics.json and report.png, and prints the table."""
    metrics = measured(results, recipe, data)
    write_atomically(json.dumps(metrics, indent=2) + "\n", folder / METRICS)
    draw(results, recipe, data, metrics).savefig(folder / PICTURE, dpi=110)
    plt.close("all")
    console.print(table(metrics))
    for sentence in verdict(metrics):
        console.print(sentence)
    console.print(f"pictures: {folder / PICTURE}   numbers: {folder / METRICS}")


def measured(results: Results, recipe: Recipe, data: SegmentationData) -> dict[str, Any]:
    """Everything that goes into metrics.json."""
    runs = {}
    for run, result in results.items():
        runs[run] = {
            "seed": recipe.seed,
            "miou": result["miou"],
            "boundary_miou": result["boundary_miou"],
            "iou": dict(zip(data.class_names, result["iou"], strict=True)),
            "boundary_iou": dict(zip(data.class_names, result["boundary_iou"], strict=True)),
            "seconds": result["seconds"],
            "peak_memory_mb": result["peak_memory"],
        }
    return {
        "runs": runs,
        "difference": {
            f"{before} to {after}": {score: runs[after][score] - runs[before][score] for score in SCORES}
            for before, after in pairwise(runs)
        },
        "config": {
            **recipe.to_dict(),
            "description": data.description,
            "brpg": recipe.brpg.to_dict(),
            "schedule": recipe.schedule(recipe.epoch_steps or 1).to_dict(),
        },
        "versions": {
            "brpg_lib": brpg_lib.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }


def verdict(metrics: dict[str, Any]) -> list[str]:
    """What was measured, whichever way it came out, and what one seed can show."""
    runs = metrics["runs"]
    said = []
    for before, after in pairwise(runs):
        changes = [change(name, runs[before][score], runs[after][score]) for score, name in SCORES.items()]
        what = "Unlabeled images" if after == "unlabeled" else "The head"
        said.append(f"{what}: {', '.join(changes)}.")
    seed = metrics["config"]["seed"]
    said.append(
        f"This is one seed ({seed}): a change of several points will show with others too, one of a point or less may "
        "not. docs/results.md has many seeds with intervals."
    )
    return said


def change(name: str, before: float, after: float) -> str:
    """A score's change in words; all numbers as they are printed, so that they add up."""
    before, after = round(before, 1), round(after, 1)
    if before == after:
        return f"{name} stays at {after:.1f}"
    return f"{name} {'up' if after > before else 'down'} from {before:.1f} to {after:.1f} ({after - before:+.1f})"


def table(metrics: dict[str, Any]) -> Table:
    """Scores, classes and costs of all runs."""
    runs = metrics["runs"]
    shown = Table(title="Test scores in %, and costs")
    shown.add_column("")
    for run in runs:
        shown.add_column(NAMES[run], justify="right")

    def row(name: str, values: list[float | None], digits: int, style: str = "", end_section: bool = False) -> None:
        cells = ["absent" if value is None else f"{value:.{digits}f}" for value in values]
        shown.add_row(name, *cells, style="dim" if None in values else style, end_section=end_section)

    for score, name in SCORES.items():
        row(name, [run[score] for run in runs.values()], 1, "bold", score == "boundary_miou")
    classes = list(runs["head"]["iou"])
    for name in classes:
        row(f"IoU {name}", [run["iou"][name] for run in runs.values()], 1, end_section=name == classes[-1])
    row("training seconds", [run["seconds"] for run in runs.values()], 0)
    row("peak memory MB, process", [run["peak_memory_mb"] for run in runs.values()], 0)
    return shown


def draw(results: Results, recipe: Recipe, data: SegmentationData, metrics: dict[str, Any]) -> Figure:
    """The whole page."""
    figure = plt.figure(figsize=(18, 13), layout="constrained")
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=(1.3, 1)))
    said = "\n".join(verdict(metrics)[:-1])
    headline = textwrap.fill(f"{recipe.framework} on {data.description}, seed {recipe.seed}", LINE)
    figure.suptitle(f"{headline}\n{said}", fontsize=13)
    palette = colors_of(data)
    draw_examples(top, results, data, palette)
    curves, classes, space = bottom.subplots(1, 3, width_ratios=(1.1, 0.9, 1.2))
    draw_losses(curves, results)
    draw_classes(classes, metrics)
    draw_space(space, results["head"], data, palette)
    return figure


def most_changed(results: Results, data: SegmentationData, count: int) -> list[int]:
    """One image from each of ``count`` parts of the test set: where first and last run differ in most of the pixels.

    Parts, because neighbors in a list are often frames of one video.
    """
    first, *_, last = results.values()
    pairs = zip(first["predictions"], last["predictions"], strict=True)
    changed = [
        ((before != after) & (data.test[i][1] != IGNORE_INDEX)).float().mean()
        for i, (before, after) in enumerate(pairs)
    ]
    parts = np.array_split(np.arange(len(changed)), min(count, len(changed)))
    return [int(max(part, key=lambda i: float(changed[i]))) for part in parts]


def differences(before: Tensor, after: Tensor, label: Tensor) -> np.ndarray:
    """Green where only the last run is right, red where only the first is, gray where both are wrong in some way."""
    known = label != IGNORE_INDEX
    shown = np.ones((*label.shape, 3))
    for where, color in (
        (known & (before != label) & (after != label), BOTH_WRONG),
        (known & (before != label) & (after == label), FIXED),
        (known & (before == label) & (after != label), BROKEN),
    ):
        shown[where.numpy()] = to_rgb(color)
    return shown


def draw_examples(figure: Any, results: Results, data: SegmentationData, palette: np.ndarray) -> None:
    """Test images in two columns of rows: image, truth, all predictions, where the first and the last differ."""
    titles = ("image", "truth", *(SHORT[run] for run in results), "difference")
    chosen = most_changed(results, data, EXAMPLES)
    halves = figure.subfigures(1, 2)
    headline = (
        f"From each of {len(chosen)} parts of the test set, the image on which the first and the last training differ "
        "most"
    )
    figure.suptitle(headline, fontsize=11)
    rows = (len(chosen) + 1) // 2
    for half, examples in zip(halves, (chosen[:rows], chosen[rows:]), strict=True):
        grid = half.subplots(rows, len(titles), squeeze=False)
        for axis in grid.flat:
            axis.set_axis_off()
        for title, axis in zip(titles, grid[0], strict=True):
            axis.set_title(title, fontsize=10)
        for index, line in zip(examples, grid, strict=False):
            image, label = data.test[index]
            predictions = [result["predictions"][index].long() for result in results.values()]
            pictures = [image.permute(1, 2, 0).numpy(), *(paint(x, palette) for x in (label, *predictions))]
            pictures.append(differences(predictions[0], predictions[-1], label))
            for axis, picture in zip(line, pictures, strict=True):
                axis.imshow(picture, interpolation="nearest")
                axis.set_axis_on()
                axis.set(xticks=[], yticks=[])
    keys = [(FIXED, "right at last only"), (BROKEN, "right at first only"), (BOTH_WRONG, "always wrong")]
    figure.legend(
        handles=[Patch(facecolor=color, edgecolor="gray", label=name) for color, name in keys],
        loc="outside lower center", ncols=3, fontsize=10, frameon=False,
    )  # fmt: skip


def draw_losses(axis: Axes, results: Results) -> None:
    """Loss curves, smoothed, over the phases of the head."""
    phases, last = results["head"]["phases"], results["head"]["steps"]
    colors = {"warmup": "#f2f2f2", "collect": "#fde9c9", "learn": "#e8f1fa"}
    for (start, name), (end, _) in pairwise([*phases, (last, "")]):
        axis.axvspan(start, end, color=colors[name], zorder=0)
        axis.text((start + end) / 2, 1.0, name, ha="center", va="bottom", fontsize=9,
                  transform=axis.get_xaxis_transform())  # fmt: skip
    for run, result in results.items():
        for part, style in (("supervised", "-"), ("unsupervised", "--"), ("strong", "--")):
            if part in result["losses"]:
                steps, values = smoothed(result["losses"][part])
                label = "unsupervised" if part == "strong" else part
                axis.plot(steps, positive(values), style, color=COLORS[run], lw=1.3, label=f"{label}, {SHORT[run]}")
    learns = next((start for start, name in phases if name == "learn"), last)
    steps, values = smoothed([pair for pair in results["head"]["losses"]["prototype"] if pair[0] > learns])
    axis.plot(steps, positive(values), color=COLORS["prototype"], lw=1.8, label="prototype (weighted)")
    axis.set(xlabel="training step", ylabel="loss (log scale)", yscale="log", xlim=(0, last))
    axis.set_title("Losses and phases of the head", fontsize=11, pad=18)
    axis.legend(fontsize=8)


def draw_classes(axis: Axes, metrics: dict[str, Any]) -> None:
    """IoU of every class in each run."""
    runs = metrics["runs"]
    names = [n for n, value in runs["head"]["iou"].items() if value is not None][::-1]
    scores = np.array([[run["iou"][n] for n in names] for run in runs.values()])
    places = np.arange(len(names))
    axis.hlines(places, scores.min(0), scores.max(0), color="lightgray", lw=3, zorder=1)
    for run, values in zip(runs, scores, strict=True):
        size = 28 if run == "head" else 70
        axis.scatter(values, places, color=COLORS[run], s=size, label=SHORT[run], zorder=2)
    axis.set(yticks=places, yticklabels=names, xlabel="IoU (%)")
    axis.grid(axis="x", alpha=0.3)
    axis.set_title("IoU per class", fontsize=11, pad=18)
    axis.legend(fontsize=8)


def draw_space(axis: Axes, result: dict[str, Any], data: SegmentationData, palette: np.ndarray) -> None:
    """Features and prototypes of the last batch, on the two main axes of the prototypes."""
    axis.set_title("Features of the last batch and the prototypes (PCA)", fontsize=11, pad=18)
    axis.set(xticks=[], yticks=[], xlabel="first axis", ylabel="second axis")
    mask = result["prototype_mask"]
    if not mask.any():
        axis.text(0.5, 0.5, "no prototypes yet", ha="center", transform=axis.transAxes)
        return
    unit = torch.nn.functional.normalize
    classes, groups, _ = mask.nonzero(as_tuple=True)
    prototypes = unit(result["prototypes"][mask].float(), dim=1)
    center = prototypes.mean(0)
    axes = torch.linalg.svd(prototypes - center, full_matrices=False).Vh[:2].T
    chosen = spread(result["point_classes"], 60)
    points = (unit(result["points"][chosen].float(), dim=1) - center) @ axes
    axis.scatter(points[:, 0], points[:, 1], c=palette[result["point_classes"][chosen]], s=7, alpha=0.45, linewidths=0)
    places = (prototypes - center) @ axes
    for group, marker, size in ((0, "*", 190), (1, "^", 70)):
        where = groups == group
        x, y = places[where].T
        axis.scatter(x, y, c=palette[classes[where]], marker=marker, s=size, edgecolors="black", lw=0.8)
    shapes = [("*", 12, "prototype, high confidence"), ("^", 8, "prototype, low confidence"), (".", 7, "feature")]
    handles: list[Artist] = [
        Line2D([], [], ls="", marker=m, ms=size, mfc="white" if m != "." else "gray", mec="black", label=name)
        for m, size, name in shapes
    ]
    handles += [Patch(facecolor=palette[c], label=name) for c, name in enumerate(data.class_names)]
    axis.legend(handles=handles, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def spread(classes: Tensor, most: int) -> Tensor:
    """Positions of at most ``most`` entries per class, evenly spaced."""
    chosen = []
    for c in classes.unique():
        places = (classes == c).nonzero()[:, 0]
        chosen.append(places[:: max(1, len(places) // most)][:most])
    return torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.long)
