"""Scores of trainings in CSV: a row per training, columns ``seed``, ``setting``, ``variant`` and scores."""

from __future__ import annotations

import csv
from pathlib import Path

from brpg_lib.benchmarks.compare.runs import Run, number

SEED, SETTING, VARIANT, CLASS = "seed", "setting", "variant", "iou:"
FORM = "a line is one training, such as seed,variant,score and 0,no head,41.2"
"""What a table looks like, for messages."""


def read_csv(path: Path, variant: str | None = None) -> list[Run]:
    """The trainings of a file.

    Args:
        path: With a heading; columns besides ``seed``, ``setting`` (may be left out), ``variant`` and ``iou:NAME`` are
            scores.
        variant: Of all rows, for a file without that column.

    Raises:
        ValueError: A column is missing or a cell is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error})") from error
    delimiter = next((mark for mark in (",", ";", "\t") if lines and mark in lines[0]), ",")
    table = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    if not table:
        raise ValueError(f"{path}: expected a heading and a row per training, found an empty file")
    columns, rows = table[0], [(i, row) for i, row in enumerate(table[1:], 2) if any(row)]
    scores, classes = _columns(path, columns, variant)
    if not rows:
        raise ValueError(f"{path}: expected a row per training, found a heading only")
    runs = []
    for line, row in rows:
        where = f"{path}, row {line}"
        if len(row) != len(columns):
            raise ValueError(f"{where}: expected {len(columns)} cells as in the heading, found {len(row)}")
        cells = dict(zip(columns, row, strict=True))
        for name in (SEED, VARIANT):
            if name in cells and not cells[name]:
                raise ValueError(f"{where}: {name}: expected a value, found an empty cell")
        runs.append(
            Run(
                source=where,
                variant=cells.get(VARIANT) or str(variant),
                setting=cells.get(SETTING, ""),
                seed=cells[SEED],
                scores={name: _cell(cells[name], f"{where}: {name}") for name in scores},
                classes={
                    name.removeprefix(CLASS): _cell(cells[name], f"{where}: {name}") if cells[name] else None
                    for name in classes
                },
            )
        )
    return runs


def _columns(path: Path, columns: list[str], variant: str | None) -> tuple[list[str], list[str]]:
    """Names of the scores and of the classes."""
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: heading: expected different names, found {', '.join(map(repr, twice))} twice")
    if SEED not in columns:
        raise ValueError(f"{path}: heading: expected a column {SEED}, found {', '.join(columns)}; {FORM}")
    if variant is None and VARIANT not in columns:
        raise ValueError(
            f"{path}: heading: expected a column {VARIANT}, found {', '.join(columns)} "
            f"(or give two files: without the head, with it); {FORM}"
        )
    if variant is not None and VARIANT in columns:
        raise ValueError(f"{path}: heading: expected no column {VARIANT} where two files are given, found one")
    classes = [name for name in columns if name.startswith(CLASS)]
    scores = [name for name in columns if name not in {SEED, SETTING, VARIANT, *classes}]
    if not scores:
        raise ValueError(f"{path}: heading: expected a column of scores, such as score or miou, found none; {FORM}")
    return scores, classes


def _cell(cell: str, where: str) -> float:
    try:
        return number(float(cell), where)
    except ValueError:
        raise ValueError(f"{where}: expected a finite number, found {cell!r}" if cell else
                         f"{where}: expected a finite number, found an empty cell") from None  # fmt: skip
