"""A few images of a directory with their masks over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.checks.findings import Findings
from brpg_lib.examples.training.data.encoding import Encoding, packed
from brpg_lib.examples.training.data.masks import opened, values_of
from brpg_lib.examples.training.reports.pictures import class_colors

SAMPLES, COLUMNS = 6, 3
SIDE = 640
"""Pixels of the longer side of a sample at most."""
OPACITY = 0.55
UNKNOWN_COLOR = (1.0, 0.0, 1.0)


def draw_samples(found: Findings) -> Figure:
    """From equal parts of the directory, an image each: itself, and with its mask over it.

    Raises:
        ValueError: No image has a mask that can be drawn.
    """
    names = found.pairs
    if not names:
        raise ValueError(f"{found.root}: no image with a mask to draw")
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(SAMPLES, len(names))).round().astype(int))]
    rows = -(-len(chosen) // COLUMNS)
    colors = palette_of(found)
    figure = plt.figure(figsize=(5.2 * COLUMNS, 2.6 * rows + 0.9), layout="constrained")
    figure.suptitle(f"{found.root.name}: {len(chosen)} of {len(names)} images, and their masks over them", fontsize=12)
    grid = figure.subplots(rows, 2 * COLUMNS, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    for place, name in enumerate(chosen):
        row, column = divmod(place, COLUMNS)
        image, overlaid, unknown = overlay(found, name, colors)
        for axis, picture in zip(grid[row, 2 * column : 2 * column + 2], (image, overlaid), strict=True):
            axis.imshow(picture, interpolation="nearest")
        grid[row, 2 * column].set_title(name if len(name) <= 24 else f"...{name[-22:]}", fontsize=9)
        if unknown:
            grid[row, 2 * column + 1].set_title("magenta means no class", fontsize=9, color="darkmagenta")
    handles = [Patch(facecolor=colors[index], label=name) for index, name in enumerate(found.class_names[:24])]
    handles.append(Patch(facecolor="white", edgecolor="gray", label="ignored: as it is"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), fontsize=9, frameon=False)
    return figure


def palette_of(found: Findings) -> np.ndarray:
    """``(C, 3)``: the colors of the palette, or some that can be told apart."""
    own = found.encoding.class_colors if isinstance(found.encoding, Encoding) else ()
    return np.array(own) / 255 if own else class_colors(max(1, len(found.class_names)))[:-1]


def overlay(found: Findings, name: str, colors: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """An image ``(H, W, 3)``, the same under its mask, and whether some pixels mean no class."""
    image = _small(found.files.images[name]) / 255
    path = found.files.masks[name]
    mask = opened(path)
    values = values_of(mask, found.encoding)
    if values is None:
        values = packed(np.array(mask.convert("RGB")))
    classes = values if found.encoding is None else found.encoding(values, path)
    height, width = image.shape[:2]
    rows = np.linspace(0, classes.shape[0] - 1, height).round().astype(int)
    columns = np.linspace(0, classes.shape[1] - 1, width).round().astype(int)
    classes = classes[rows][:, columns]
    known = (classes >= 0) & (classes < len(colors))
    painted = np.where(known[..., None], colors[classes.clip(0, len(colors) - 1)], np.array(UNKNOWN_COLOR))
    ignored = classes == IGNORE_INDEX
    mixed = np.where(ignored[..., None], image, (1 - OPACITY) * image + OPACITY * painted)
    return image, mixed, bool((~known & ~ignored).any())


def _small(path: Path) -> np.ndarray:
    image = opened(path).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    return np.array(image)
