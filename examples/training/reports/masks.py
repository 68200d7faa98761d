"""What label images hold, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.batches import SegmentationData
from brpg_lib.examples.training.data.masks import Tally

ABSENT = "-"


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
