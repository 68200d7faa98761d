"""What ``brpg inspect`` prints."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from brpg_lib.config import BRPGConfig
from brpg_lib.inspection.findings import Findings
from brpg_lib.inspection.record import HeadRecord

PAIRS = 8
"""Nearest pairs of classes that are listed."""


def everything(head: HeadRecord, found: Findings) -> Iterator[Table | Text]:
    """All that is printed, in order."""
    yield from map(Text, sentences(head, found))
    yield classes(head, found)
    yield pairs(head, found)
    if head.config:
        yield settings(head)


def sentences(head: HeadRecord, found: Findings) -> list[str]:
    """The head in a few lines."""
    high, low = found.prototypes.sum(0).tolist()
    said = [
        f"{head.num_classes} classes, {head.prototypes.shape[3]} channels: "
        f"{high} prototypes of high confidence and {low} of low, up to {head.mask.shape[2]} per class and group"
    ]
    known = [f"{name} {head.settings[name]}" for name in ("iteration", "seed") if name in head.settings]
    said.append(", ".join([*known, f"phase {head.phase}"]))
    ignored = int(head.config.get("ignore_index", -1))
    if head.seen is not None:
        unseen = [index for index in (~head.seen).nonzero()[:, 0].tolist() if index != ignored]
        if unseen:
            said.append(f"classes that the labels have not shown: {_names(head, unseen)}")
    if ignored in range(head.num_classes):
        said.append(f"ignored: {_names(head, [ignored])}")
    if head.seen is not None and bool(head.mask.any()):
        missing = head.seen & (found.prototypes.sum(1) == 0)
        if bool(missing.any()):
            said.append(f"classes in the labels without prototypes: {_names(head, missing.nonzero()[:, 0].tolist())}")
    if head.rows is not None and not bool(head.rows.any()):
        why = "released after the last clustering" if bool(head.mask.any()) else "nothing was collected yet"
        said.append(f"the queues are empty: {why}")
    if head.dropped is not None and int(head.dropped):
        said.append(f"{int(head.dropped)} pixels or points were left out, because they were not finite")
    return said


def classes(head: HeadRecord, found: Findings) -> Table:
    """A row for each class."""
    table = Table(title="Prototypes and rows in the queues, of high + low confidence")
    table.add_column("class")
    for name in ("prototypes", "rows", "dead", "collapsed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("nearest class")
    table.add_column("cosine", justify="right", no_wrap=True)
    for index in range(head.num_classes):
        high, low = found.prototypes[index].tolist()
        rows = "?" if head.rows is None else " + ".join(map(str, head.rows[index].tolist()))
        dead = Text("?") if found.dead is None else _alarm(int(found.dead[index]))
        nearest = found.nearest(index)
        other, cosine = ("", "") if nearest is None else (head.name(nearest[0]), f"{nearest[1]:.2f}")
        counts = f"{high} + {low}", rows, dead, _alarm(int(found.collapsed[index]))
        style = "dim" if high + low == 0 else ""
        table.add_row(Text(head.name(index)), *counts, Text(other), cosine, style=style)
    return table


def pairs(head: HeadRecord, found: Findings) -> Table:
    """The classes that are nearest to each other, by their most similar prototypes: what may be confused."""
    table = Table(title="Nearest pairs of classes")
    table.add_column("class")
    table.add_column("class")
    table.add_column("cosine", justify="right")
    for one, other, cosine in found.nearest_pairs(PAIRS):
        table.add_row(Text(head.name(one)), Text(head.name(other)), f"{cosine:.3f}")
    return table


def settings(head: HeadRecord) -> Table:
    """Hyper-parameters, with the defaults that they differ from."""
    usual = BRPGConfig().to_dict()
    table = Table("setting", "value", "default", title="Settings of the head")
    for name, value in head.config.items():
        differs = name in usual and _plain(usual[name]) != _plain(value)
        table.add_row(name, str(value), str(usual[name]) if differs else "", style="bold" if differs else "")
    if "queue_dtype" in head.settings:
        table.add_row("queue_dtype", str(head.settings["queue_dtype"]), "")
    return table


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _names(head: HeadRecord, indices: list[int]) -> str:
    return ", ".join(map(head.name, indices))


def _alarm(count: int) -> Text:
    return Text(str(count), style="red" if count else "")
