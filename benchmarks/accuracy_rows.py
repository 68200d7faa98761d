"""The trainings of a sweep by rows, and what each row gains over the one it builds on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from brpg_lib.benchmarks.compare.runs import ALL_LABELS, LABELS_ALONE, WITHOUT
from brpg_lib.benchmarks.compare.statistics import Estimate, paired_differences, students

Result = dict[str, Any]
Results = Sequence[Result]
BASELINE = WITHOUT
METRICS = {"miou": "mIoU", "boundary_miou": "boundary IoU"}
LEAST_ROOM = 2.0
"""Points of mIoU between labels alone and all labels, below which nothing that adds images can show."""


class Row(NamedTuple):
    """Trainings that differ in seed and split only."""

    framework: str
    variant: str

    @property
    def name(self) -> str:
        """For people."""
        if self.framework == "supervised":
            return self.variant
        return self.framework if self.variant == BASELINE else f"{self.framework} + {self.variant}"

    @property
    def base(self) -> Row | None:
        """What its gain is over."""
        if self.framework == "supervised":
            return FLOOR if self.variant == ALL_LABELS else None
        return FLOOR if self.variant == BASELINE else Row(self.framework, BASELINE)


FLOOR, CEILING = Row("supervised", LABELS_ALONE), Row("supervised", ALL_LABELS)


def has_room(room: Estimate) -> bool:
    """Whether all labels are clearly better than the labeled images alone."""
    return room.mean >= LEAST_ROOM and (room.low > 0 or not room.known)


def rows(results: Results) -> list[Row]:
    """Labels alone, the frameworks with their variants, all labels."""
    found = unique(Row(r["settings"]["framework"], r["variant"]) for r in results)
    inner = [row for row in found if row not in (FLOOR, CEILING)]
    frameworks = unique(row.framework for row in inner)
    inner.sort(key=lambda row: (frameworks.index(row.framework), row.variant != BASELINE))
    return [*(row for row in (FLOOR,) if row in found), *inner, *(row for row in (CEILING,) if row in found)]


def of_row(results: Results, row: Row) -> dict[tuple[Any, ...], Result]:
    """Trainings of a row by what partners share."""
    return {
        tuple(result["settings"][name] for name in ("data", "split", "seed")): result
        for result in results
        if (result["settings"]["framework"], result["variant"]) == row
    }


def differences(results: Results, row: Row, metric: str) -> list[float]:
    """Gain of each pair over the row's base, in points."""
    if row.base is None:
        return []
    before, after = ({key: r[metric] for key, r in of_row(results, one).items()} for one in (row.base, row))
    return list(paired_differences(before, after).values())


def class_gains(results: Results, row: Row, index: int) -> list[float]:
    """The same of one class, over the pairs in which it occurs."""
    if row.base is None:
        return []
    before, after = (
        {key: r["iou"][index] for key, r in of_row(results, one).items() if r["iou"][index] is not None}
        for one in (row.base, row)
    )
    return list(paired_differences(before, after).values())


def gain(results: Results, row: Row, metric: str) -> Estimate | None:
    """Mean gain with its interval; None without a pair."""
    values = differences(results, row, metric)
    return students(values) if values else None


def unique(values: Iterable[Any]) -> list[Any]:
    """In the order of their first appearance."""
    return list(dict.fromkeys(values))
