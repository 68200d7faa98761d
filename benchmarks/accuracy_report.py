"""What a sweep of trainings came to: sentences, tables and a picture of what unlabeled images add, and the head."""

from __future__ import annotations

import statistics
from pathlib import Path

from brpg_lib.benchmarks import accuracy_plots
from brpg_lib.benchmarks.accuracy_rows import (
    BASELINE,
    CEILING,
    FLOOR,
    METRICS,
    Results,
    Row,
    class_gains,
    gain,
    has_room,
    of_row,
    rows,
    unique,
)
from brpg_lib.benchmarks.compare.power import more_needed
from brpg_lib.benchmarks.compare.runs import ALL_LABELS, LABELS_ALONE
from brpg_lib.benchmarks.compare.statistics import LEVEL, Estimate, signed, text
from brpg_lib.benchmarks.compare.words import excluded
from brpg_lib.benchmarks.tables import Table
from brpg_lib.files import write_atomically

PAGE, PICTURE = "accuracy.md", "accuracy.png"


def write(results: Results, folder: Path) -> None:
    """The page, and its picture."""
    accuracy_plots.draw(results, folder / PICTURE)
    write_atomically(page(results), folder / PAGE)


def page(results: Results) -> str:
    """All that is known, in Markdown."""
    first = results[0]
    where, settings = first["environment"], first["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    parts = [
        "# What unlabeled images add, and what the head adds",
        "\n".join(f"- {sentence}" for sentence in sentences(results)),
        f"![Scores]({PICTURE})",
        *(table.markdown().strip() for table in tables(results)),
        f"{len(results)} trainings of {first['steps']} steps on {settings['data']}, network "
        f"{settings['network']}, on {where['device']}, {where['threads']} thread(s) each; {versions}.",
    ]
    return "\n\n".join(parts) + "\n"


def sentences(results: Results) -> list[str]:
    """What the sweep can say, and what it cannot."""
    room = gain(results, CEILING, "miou")
    if room is None:
        return [f"No seed has both {LABELS_ALONE} and {ALL_LABELS} yet: nothing can be said of gains."]
    said = [f"Room: {ALL_LABELS} reach {text(room)} mIoU over {LABELS_ALONE} ({seeds(room)})."]
    if not has_room(room):
        said.append(
            f"That is no room: nothing that adds unlabeled images can show here, and no gain is stated. Take fewer "
            f"labels, longer trainings or harder data, until {ALL_LABELS} are clearly better."
        )
        return said
    for row in rows(results):
        if row.framework != "supervised":
            said += _about(results, row, room)
    return said


def _about(results: Results, row: Row, room: Estimate) -> list[str]:
    found = gain(results, row, "miou")
    if found is None:
        return []
    what = "unlabeled images add" if row.variant == BASELINE else f"{row.variant} adds"
    said = f"{row.framework}: {what} {text(found)} mIoU ({share(found, room)} of the room; {seeds(found)})."
    edge = gain(results, row, "boundary_miou")
    if edge is not None:
        said += f" Boundary IoU {text(edge)}."
    if not found.known:
        return [f"{said} One seed: other seeds may well differ."]
    if found.sign == 0 and found.low != found.high:
        more = more_needed(found)
        wanted = "no number of seeds worth running" if more is None else f"about {more} more seeds"
        said += f" Cannot tell yet: {wanted} would tell a difference of this size. {excluded(found)}"
    return [said]


def seeds(estimate: Estimate) -> str:
    """How many pairs there are."""
    return f"{estimate.count} seed{'' if estimate.count == 1 else 's'}"


def share(found: Estimate, room: Estimate) -> str:
    """A gain as a share of the room."""
    return f"{found.mean / room.mean:.0%}"


def tables(results: Results) -> list[Table]:
    """Scores of each row, and of each class."""
    return [scores(results), classes(results)]


def scores(results: Results) -> Table:
    """Means over seeds and splits, gains, and costs."""
    heads = [f"{name}{what}" for name in METRICS.values() for what in ("", ", gain")]
    table = Table(
        f"Percent, mean ± standard deviation over runs; gain: mean of paired differences with its {LEVEL:.0%} interval",
        ("", "runs", *heads, "of the room", "student, mIoU", "seconds", "memory"),
    )
    room = gain(results, CEILING, "miou")
    stated = room is not None and has_room(room)
    for row in rows(results):
        chosen = list(of_row(results, row).values())
        cells = [row.name, str(len(chosen))]
        for metric in METRICS:
            found = gain(results, row, metric) if stated or row == CEILING else None
            cells += [mean_and_deviation([r[metric] for r in chosen]), "" if found is None else text(found)]
        found = gain(results, row, "miou") if row != CEILING else None
        cells.append(share(found, room) if stated and found is not None and room is not None else "")
        cells.append(f"{statistics.mean(r['student']['miou'] for r in chosen):.1f}")
        cells.append(f"{statistics.mean(r['seconds'] for r in chosen):.0f}")
        cells.append(f"{statistics.mean(r['peak_memory_mb'] for r in chosen):.0f} MB")
        table.rows.append(cells)
    used = ", ".join(str(seed) for seed in unique(r["settings"]["seed"] for r in results))
    table.notes += [
        f"Seeds {used}. Gain: of a framework over {LABELS_ALONE}, of a head over its framework. Runs of a seed share "
        "initial weights, batches and augmentations as far as they have the same images.",
        "The interval is Student's, of the mean over runs: it speaks of other seeds and splits, not of other data.",
        "Scored is the moving average of the weights, for every row alike; student: the weights themselves.",
    ]
    return table


def classes(results: Results) -> Table:
    """Mean IoU of each class with labels alone, and the mean gain of each row over what it builds on."""
    shown = [row for row in rows(results) if row.base is not None]
    table = Table(f"IoU per class: {LABELS_ALONE}, and mean gains", ("class", LABELS_ALONE, *(r.name for r in shown)))
    for index, name in enumerate(results[0]["class_names"]):
        floor = [r["iou"][index] for r in of_row(results, FLOOR).values() if r["iou"][index] is not None]
        cells = [name, f"{statistics.mean(floor):.1f}" if floor else ""]
        for row in shown:
            gains = class_gains(results, row, index)
            cells.append(signed(statistics.mean(gains)) if gains else "")
        table.rows.append(cells)
    return table


def mean_and_deviation(values: list[float]) -> str:
    """``mean ± standard deviation``."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"
