"""What predictions look like: masks, overlays, maps of doubt, and a list of the images to look at first."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from brpg_lib.examples.training.prediction import Predicted
from brpg_lib.examples.training.reports.pictures import class_colors
from brpg_lib.files import write_atomically, written_beside

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

INDEX, LEGEND = "index.csv", "legend.png"
MASKS, OVERLAYS, ENTROPY, AGREEMENT = "masks", "overlays", "entropy", "agreement"
SUFFIXES = {MASKS: ".png", OVERLAYS: ".jpg", ENTROPY: ".png", AGREEMENT: ".png"}
OPACITY = 0.55
"""Of the colors in an overlay."""
DISAGREE, AGREE = (215, 48, 39), (240, 240, 240)
FIXED = ("name", "image", "width", "height", "mean_entropy", "disagreement")
"""Columns of the index, before the share of each class."""
Row = dict[str, str]


@dataclass(frozen=True)
class Maps:
    """What is written of one image, on the host.

    Attributes:
        classes: ``(H, W)`` uint8.
        entropy: ``(H, W)`` float32 in 0..1, of the network's probabilities.
        agrees: ``(H, W)`` bool, whether network and prototypes say the same; None without prototypes.
    """

    classes: Tensor
    entropy: Tensor
    agrees: Tensor | None


def maps_of(found: Predicted, size: tuple[int, int], by_prototypes: bool) -> Maps:
    """The maps of one image of that height and width, from what is predicted for it, perhaps reduced."""
    found = found.enlarged(size)
    agrees = None if found.similarity is None else (found.classes(True) == found.classes())[0].cpu()
    return Maps(found.classes(by_prototypes)[0].to(torch.uint8).cpu(), found.entropy()[0].float().cpu(), agrees)


class Pages:
    """The folder of predictions.

    Args:
        folder: Where to write.
        class_names: One per class.
        compares: Whether there are prototypes to compare the network with.
        colors: ``(r, g, b)`` of each class; none for distinct ones.
    """

    def __init__(
        self, folder: Path, class_names: Sequence[str], compares: bool, colors: Sequence[tuple[int, int, int]] = ()
    ) -> None:
        self.folder, self.class_names, self.compares = folder, class_names, compares
        self.columns = (*FIXED, *(f"share {name}" for name in class_names))
        distinct = (255 * class_colors(len(class_names))[:-1]).round()
        self.colors = np.array(colors or distinct).astype(np.uint8)

    def files(self, name: str) -> dict[str, Path]:
        """What is written for an image, by kind."""
        kinds = [kind for kind in SUFFIXES if self.compares or kind != AGREEMENT]
        return {kind: self.folder / kind / f"{name}{SUFFIXES[kind]}" for kind in kinds}

    def write(self, name: str, image: Path, pixels: Tensor, maps: Maps) -> Row:
        """Writes the maps of an image, each whole or not at all.

        Args:
            name: Of the image.
            image: Its file.
            pixels: ``(3, H, W)`` uint8.
            maps: Of the same size.

        Returns:
            Its row in the index.
        """
        classes = maps.classes.numpy()
        shown = (1 - OPACITY) * pixels.movedim(0, 2).numpy() + OPACITY * self.colors[classes]
        pictures = {
            MASKS: _indexed(classes, self.colors),
            OVERLAYS: Image.fromarray(shown.round().astype(np.uint8)),
            ENTROPY: _indexed((255 * maps.entropy.clamp(0, 1)).round().numpy().astype(np.uint8), HEAT),
        }
        if maps.agrees is not None:
            pictures[AGREEMENT] = _indexed(maps.agrees.numpy().astype(np.uint8), np.array([DISAGREE, AGREE], np.uint8))
        for kind, path in self.files(name).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(pictures[kind], path)
        shares = np.bincount(classes.ravel(), minlength=len(self.class_names)) / classes.size
        numbers = {
            "mean_entropy": float(maps.entropy.mean()),
            "disagreement": None if maps.agrees is None else 1 - float(maps.agrees.float().mean()),
            **{f"share {name}": share for name, share in zip(self.class_names, shares.tolist(), strict=True)},
        }
        known = {"name": name, "image": str(image), "width": str(pixels.shape[2]), "height": str(pixels.shape[1])}
        return known | {key: "" if value is None else f"{value:.6f}" for key, value in numbers.items()}

    def read_index(self) -> dict[str, Row]:
        """Rows by name of what is there."""
        return {row["name"]: row for row in self._rows() if tuple(row) == self.columns}

    def clear(self) -> None:
        """Removes what is there, of whatever classes."""
        for row in self._rows():
            for kind, suffix in SUFFIXES.items():
                (self.folder / kind / f"{row.get('name')}{suffix}").unlink(missing_ok=True)
        (self.folder / INDEX).unlink(missing_ok=True)

    def _rows(self) -> list[Row]:
        path = self.folder / INDEX
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def write_index(self, rows: Mapping[str, Row]) -> None:
        """The images, those most worth a look first."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(sorted(rows.values(), key=doubt, reverse=True))
        write_atomically(text.getvalue(), self.folder / INDEX)

    def write_legend(self) -> None:
        """The color of each class."""
        named = enumerate(zip(self.class_names, (self.colors / 255).tolist(), strict=True))
        patches = [Patch(color=tuple(color), label=f"{index}: {name}") for index, (name, color) in named]
        figure = plt.figure()
        legend = figure.legend(handles=patches, loc="center", ncols=1 + len(patches) // 25, frameon=False)
        area = legend.get_window_extent().padded(8).transformed(figure.dpi_scale_trans.inverted())
        path = self.folder / LEGEND
        partial = written_beside(path, lambda file: figure.savefig(file, format="png", dpi=110, bbox_inches=area))
        os.replace(partial, path)
        plt.close(figure)


def doubt(row: Mapping[str, Any]) -> tuple[float, float]:
    """How much there is to check in an image: its mean entropy; where that is equal, the share of disagreement.

    Not their sum: prototypes of small classes lie within large ones, and disagree in easy images too.
    """
    return float(row["mean_entropy"]), float(row["disagreement"] or 0)


HEAT = (255 * plt.get_cmap("inferno")(np.arange(256))[:, :3]).round().astype(np.uint8)
"""Colors of the entropy, from 0 to 1."""


def _indexed(values: np.ndarray, colors: np.ndarray) -> Image.Image:
    """An image of mode P whose pixels have these values ``(H, W)`` uint8, and look as ``colors (n, 3)`` say."""
    image = Image.fromarray(values)
    image.putpalette(colors.flatten().tolist())
    return image


def _save(image: Image.Image, path: Path) -> None:
    options: dict[str, Any] = {"quality": 90} if path.suffix == ".jpg" else {"compress_level": 3}
    kind = "JPEG" if path.suffix == ".jpg" else "PNG"
    os.replace(written_beside(path, lambda file: image.save(file, format=kind, **options)), path)
