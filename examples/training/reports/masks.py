"""What label images hold, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.batches import SegmentationData
from brpg_lib.examples.training.data.checks.findings import Findings
from brpg_lib.examples.training.data.encoding import Encoding, color_text, rgb
from brpg_lib.examples.training.data.masks import Tally

ABSENT = "-"
MOST_ROWS = 40
"""Values of a table; the most frequent ones are shown."""


def show_masks(data: SegmentationData, console: Console) -> None:
    """Print the classes of the label images, and what a user should know about them; nothing without files."""
    if data.masks is None:
        return
    console.print(class_table({"labeled": data.masks.labeled, "test": data.masks.test}, data.class_names))
    for notice in data.masks.notices:
        console.print(f"[yellow]Notice:[/] {notice}", soft_wrap=True)


def class_table(tallies: dict[str, Tally], class_names: Sequence[str]) -> Table:
    """Of each class: pixels, their share, and in how many images it is; for each of the tallies."""
    table = Table(title=f"Classes of the masks: pixels, share, images ({counted(tallies)})", title_justify="left")
    table.add_column("")
    table.add_column("class")
    for name in tallies:
        table.add_column(f"{name} pixels", justify="right")
        table.add_column("share", justify="right")
        table.add_column("images", justify="right")
    rows = [*enumerate(class_names), (IGNORE_INDEX, "ignored")]
    for index, name in rows:
        cells = [cell for tally in tallies.values() for cell in row_of(tally, index)]
        lacks = any(not tally.class_pixels[index] for tally in tallies.values())
        own = str(index) if index != IGNORE_INDEX else ""
        table.add_row(own, name, *cells, style="yellow" if lacks and index != IGNORE_INDEX else "")
    return table


def counted(tallies: dict[str, Tally]) -> str:
    """How many masks there are, in words."""
    return ", ".join(f"{tally.masks} {name}" for name, tally in tallies.items())


def row_of(tally: Tally, index: int) -> tuple[str, str, str]:
    """Pixels, share and images of a class."""
    pixels, total = tally.class_pixels[index], sum(tally.class_pixels.values())
    if not pixels:
        return ABSENT, ABSENT, ABSENT
    return f"{pixels}", f"{100 * pixels / total:.3g}%", f"{tally.class_images[index]}"


def value_table(found: Findings) -> Table:
    """Of each value of the masks: pixels, share, images, and the class that it means."""
    tally, encoding = found.values, found.encoding
    shown = encoding.shown if isinstance(encoding, Encoding) else str
    table = _values_table(f"Values of the masks ({tally.masks})", "value")
    for value, pixels in _most(tally.pixels):
        known = np.array([[value]])
        index = int((known if encoding is None else encoding(known, tally.examples[value]))[0, 0])
        fits = index == IGNORE_INDEX or 0 <= index < len(found.class_names)
        name = "ignored" if index == IGNORE_INDEX else found.class_names[index] if fits else "no class"
        share = 100 * pixels / tally.pixels.total()
        table.add_row(
            shown(value), f"{pixels}", f"{share:.3g}%", f"{tally.images[value]}", name, style="" if fits else "red"
        )
    _add_rest(table, tally.pixels)
    return table


def color_table(tally: Tally) -> Table:
    """Of each color of the masks: pixels and share."""
    table = _values_table(f"Colors of the masks ({len(tally.colored)} of {tally.masks})", "color")
    for color, pixels in _most(tally.colors):
        share, images = 100 * pixels / tally.colors.total(), tally.color_images[color]
        shown = f"[on {color_text(color)}]  [/] {color_text(color)}"
        table.add_row(shown, f"{pixels}", f"{share:.3g}%", f"{images}", ",".join(map(str, rgb(color))))
    _add_rest(table, tally.colors)
    return table


def _values_table(title: str, kind: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(kind)
    for name in ("pixels", "share", "images"):
        table.add_column(name, justify="right")
    table.add_column("r,g,b" if kind == "color" else "means")
    return table


def _most(pixels: Counter[int]) -> list[tuple[int, int]]:
    return sorted(pixels.most_common(MOST_ROWS))


def _add_rest(table: Table, pixels: Counter[int]) -> None:
    if len(pixels) > MOST_ROWS:
        rest = pixels.total() - sum(number for _, number in _most(pixels))
        share = 100 * rest / pixels.total()
        table.add_row(f"{len(pixels) - MOST_ROWS} more", f"{rest}", f"{share:.3g}%", "", "")
