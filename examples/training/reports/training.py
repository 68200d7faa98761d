"""What a training of `brpg train` looks like: validations, losses, and some test images."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brpg_lib.examples.training.evaluation import classes_of
from brpg_lib.examples.training.loop import Run
from brpg_lib.examples.training.reports.pictures import colors_of, paint, positive

EXAMPLES = 4
LINE = 130
"""Letters of a headline's line."""


def draw(run: Run) -> Figure:
    """The whole page."""
    figure = plt.figure(figsize=(15, 10), layout="constrained")
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 1.2)))
    final = run.record.validations[-1]
    head = "without" if run.trainer.head is None else "with"
    figure.suptitle(
        textwrap.fill(f"{run.recipe.framework} {head} the head, {run.data.description}", LINE) + "\n"
        f"mIoU {final['miou']:.2f}, boundary IoU {final['boundary_miou']:.2f}",
        fontsize=13,
    )
    scores, losses, classes = top.subplots(1, 3)
    _draw_scores(scores, run)
    _draw_losses(losses, run)
    _draw_classes(classes, final)
    _draw_examples(bottom, run)
    return figure


def _draw_scores(axis: Axes, run: Run) -> None:
    epochs = [v["epoch"] for v in run.record.validations]
    for name, label in (("miou", "mIoU"), ("boundary_miou", "boundary IoU")):
        axis.plot(epochs, [v[name] for v in run.record.validations], ".-", label=label)
    axis.set(xlabel="epoch", ylabel="%", title="Validation")
    axis.grid(alpha=0.3)
    axis.legend()


def _draw_losses(axis: Axes, run: Run) -> None:
    for name, values in run.record.losses.items():
        steps, means = np.array(values).T
        axis.plot(steps / run.plan.epoch, positive(means), label=name)
    axis.set(xlabel="epoch", ylabel="loss (log scale)", yscale="log", title="Losses")
    axis.grid(alpha=0.3)
    axis.legend()


def _draw_classes(axis: Axes, final: dict[str, Any]) -> None:
    present = {name: value for name, value in final["iou"].items() if value is not None}
    axis.barh(list(present), list(present.values()), color="tab:blue")
    axis.invert_yaxis()
    axis.set(xlabel="%", title="IoU per class", xlim=(0, 100))
    axis.tick_params(axis="y", labelsize=8 if len(present) < 30 else 4)


def _draw_examples(figure: Any, run: Run) -> None:
    """From equal parts of the test set, an image each: itself, the truth, the prediction."""
    model = run.trainer.eval().average
    palette = colors_of(run.data)
    chosen = np.linspace(0, len(run.test) - 1, min(EXAMPLES, len(run.test))).round().astype(int).tolist()
    grid = figure.subplots(3, len(chosen), squeeze=False)
    for place, (column, index) in enumerate(zip(grid.T, chosen, strict=True)):
        image, label = run.test[index]
        prediction = classes_of(model, image, run.processes.device, run.recipe.window).cpu()
        pictures = (image.permute(1, 2, 0).numpy(), paint(label, palette), paint(prediction, palette))
        for axis, picture, title in zip(column, pictures, ("image", "ground truth", "prediction"), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if place == 0:
                axis.set_ylabel(title)
