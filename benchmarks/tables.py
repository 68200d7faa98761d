"""Tables, for the terminal and for a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import rich.table
from rich.text import Text


@dataclass
class Table:
    """A table of finished text.

    Attributes:
        title: What it shows.
        columns: Headings; the first column names the rows.
        rows: Cells, as many as columns.
        notes: Sentences below it.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rich(self) -> rich.table.Table:
        """For the terminal."""
        caption = Text("\n".join(self.notes), style="dim italic")
        shown = rich.table.Table(title=self.title, caption=caption, caption_justify="left")
        for i, column in enumerate(self.columns):
            shown.add_column(column, justify="right" if i else "left")
        for row in self.rows:
            shown.add_row(*(Text(cell) for cell in row))
        return shown

    def markdown(self) -> str:
        """For a page."""
        lines = [list(self.columns), ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"### {self.title}\n\n{table}\n" + (f"{notes}\n" if notes else "")


def seconds(value: float) -> str:
    """Seconds with three digits, in the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{_three(value / size)} {unit}"
    return f"{_three(value / 1e-6)} µs"


def bytes_(value: float | None) -> str:
    """MB or GB."""
    if value is None:
        return "unknown"
    return f"{_three(value / 1e9)} GB" if value >= 1e9 else f"{_three(value / 1e6)} MB"


def difference(after: float | None, before: float | None) -> str:
    """MB or GB more or less."""
    if after is None or before is None:
        return "unknown"
    return ("-" if after < before else "+") + bytes_(abs(after - before))


def ratio(value: float) -> str:
    """How many times as much."""
    return f"{_three(value)}x"


def count(value: float) -> str:
    """A large number with a letter."""
    for letter, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{_three(value / size)} {letter}"
    return _three(value)


def _three(value: float) -> str:
    """Three digits, no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
