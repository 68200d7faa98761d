"""One training as it is compared: where it comes from, what it shares with its partner, what it scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from brpg_lib.benchmarks.compare.bootstrap import ImageCounts

WITHOUT, WITH = "no head", "BRPG"
LABELS_ALONE, ALL_LABELS = "labels alone", "all labels"
REFERENCES = (LABELS_ALONE, ALL_LABELS)
"""What the accuracy benchmark trains besides: the floor, and what could be reached at most."""
SCORE_NAMES = {"miou": "mIoU", "dice": "Dice", "boundary_miou": "boundary IoU"}


@dataclass(frozen=True)
class Run:
    """The scores of one training.

    Attributes:
        source: File, and row where there are several in one.
        variant: ``"no head"``, ``"BRPG"`` or another name.
        setting: What it was repeated under, such as the labeled split; may be empty.
        seed: Its seed.
        scores: By name, the first one is what the verdict is about; percent.
        classes: IoU by class in percent; None where the class does not occur in the test set.
        fixed: Choices that both runs of a pair have to share.
        head: Choices of the head, which all runs of a variant have to share.
        surroundings: Versions and hardware, which had better be the same.
        counts: Pixels of each test image, by class; None where only scores are known.
        images: Names of these images, if they have some.
    """

    source: str
    variant: str
    setting: str
    seed: str
    scores: Mapping[str, float]
    classes: Mapping[str, float | None] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    surroundings: Mapping[str, Any] = field(default_factory=dict)
    counts: ImageCounts | None = None
    images: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Its seed and setting in words."""
        return f"seed {self.seed}" + (f", setting {self.setting}" if self.setting else "")


def number(value: object, where: str) -> float:
    """A finite score.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        found = "nothing" if value is None else repr(value)
        raise ValueError(f"{where}: expected a finite number, found {found}")
    return float(value)


def number_or_none(value: object, where: str) -> float | None:
    """The score of a class, or that it does not occur."""
    return None if value is None else number(value, where)


def in_percent(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """All scores in percent; those between 0 and 1 throughout are taken for fractions.

    Returns:
        The runs, and a note if they were fractions.

    Raises:
        ValueError: Some are fractions and others are not, or one is no share at all.
    """
    fractions = {run.source: max([*run.scores.values(), *_present(run)]) <= 1 for run in runs}
    small = [run for run in runs if fractions[run.source]]
    large = [run for run in runs if not fractions[run.source]]
    if small and large:
        shown = " and ".join(f"{r.source} has {name} {r.scores[name]:g}" for r in (small[0], large[0])
                             for name in list(r.scores)[:1])  # fmt: skip
        raise ValueError(f"scores on different scales: expected 0 to 1 in all runs or 0 to 100 in all, found {shown}")
    top = 1 if small else 100
    for run in runs:
        values = {**run.scores, **{f"IoU of {name}": value for name, value in run.classes.items()}}
        for name, value in values.items():
            if value is not None and not 0 <= value <= top:
                raise ValueError(f"{run.source}: {name}: expected a number from 0 to {top} as in the other columns "
                                 f"and runs, found {value:g}")  # fmt: skip
        _require_one_scale(run, top)
    if not small:
        return list(runs), []
    scaled = [
        replace(
            run,
            scores={name: 100 * value for name, value in run.scores.items()},
            classes={name: None if value is None else 100 * value for name, value in run.classes.items()},
        )
        for run in runs
    ]
    return scaled, ["The scores are between 0 and 1; here they are shown in percent."]


def _require_one_scale(run: Run, top: int) -> None:
    """Percent beside columns that can only be fractions."""
    if top == 1:
        return
    for name, value in run.scores.items():
        if 0 < value <= 1 < max(run.scores.values()) / 5:
            raise ValueError(f"{run.source}: {name}: expected percent as in the other columns, found {value:g}")
    present, (first, *_) = _present(run), run.scores.values()
    if present and first <= 1 and sum(present) / len(present) > 5:
        raise ValueError(
            f"{run.source}: {next(iter(run.scores))}: expected percent as the IoU of classes, found {first:g}"
        )
    if present and 0 < max(present) <= 1:
        raise ValueError(
            f"{run.source}: IoU of classes: expected percent as the score is, found at most {max(present):g}"
        )


def _present(run: Run) -> list[float]:
    """IoU of the classes that occur."""
    return [value for value in run.classes.values() if value is not None]


def require_same_classes(runs: Sequence[Run]) -> None:
    """Require that all runs tell of the same classes.

    Raises:
        ValueError: Two do not.
    """
    first = runs[0]
    for run in runs[1:]:
        if list(run.classes) != list(first.classes):
            differing = sorted(set(first.classes) ^ set(run.classes)) or ["their order"]
            raise ValueError(
                f"{run.source}: class names: expected the {len(first.classes)} of {first.source}, found "
                f"{len(run.classes)} (different: {', '.join(differing[:5])}{', ...' if len(differing) > 5 else ''})"
            )
        if list(run.scores) != list(first.scores):
            raise ValueError(
                f"{run.source}: scores: expected {', '.join(first.scores)} as in {first.source}, "
                f"found {', '.join(run.scores)}"
            )
