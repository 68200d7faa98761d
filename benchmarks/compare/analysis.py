"""What a comparison comes to: estimates for each score, for each class, and for other test images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from brpg_lib.benchmarks.compare.bootstrap import image_bootstrap
from brpg_lib.benchmarks.compare.pairing import Comparison, Pair
from brpg_lib.benchmarks.compare.power import more_needed
from brpg_lib.benchmarks.compare.runs import Run
from brpg_lib.benchmarks.compare.statistics import Differences, Estimate, estimates, paired_differences

Value = Callable[[Run], float]


@dataclass(frozen=True)
class Options:
    """Choices of the analysis.

    Attributes:
        level: Of the intervals.
        resamples: Test sets that the bootstrap draws.
        seed: Of these draws.
    """

    level: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class Score:
    """One score over all pairs.

    Attributes:
        name: Of the score.
        before: Mean over pairs, percent.
        after: The same with the head.
        estimates: Of the difference; the first one is the headline.
        more: Further units that would tell a difference of this size; None where none are needed, or too many.
    """

    name: str
    before: float
    after: float
    estimates: list[Estimate]
    more: int | None

    @property
    def headline(self) -> Estimate:
        """What the verdict is about."""
        return self.estimates[0]


@dataclass(frozen=True)
class ClassScore:
    """One class.

    Attributes:
        name: Of the class.
        pairs: In which it occurs.
        before: Mean IoU over these, percent; NaN where there are none.
        after: The same with the head.
        estimate: Of the difference, at a level at which the intervals of all classes hold simultaneously; None where it
            never occurs.
        images: The same over test images, where these are known.
    """

    name: str
    pairs: int
    before: float
    after: float
    estimate: Estimate | None
    images: Estimate | None = None

    @property
    def difference(self) -> float:
        """Mean gain in points; 0 where the class never occurs."""
        return 0.0 if self.estimate is None else self.estimate.mean


@dataclass(frozen=True)
class Finding:
    """All that a comparison says.

    Attributes:
        comparison: The trainings.
        scores: The first one is the verdict's.
        classes: In the order of the class names; may be empty.
        class_level: Level of each class's own interval (Bonferroni).
        images: Difference of mIoU over other test images; None where they are not known or not the same.
        notes: What a reader has to know.
    """

    comparison: Comparison
    scores: list[Score]
    classes: list[ClassScore]
    class_level: float
    images: Estimate | None
    notes: list[str] = field(default_factory=list)


def analyse(comparison: Comparison, options: Options) -> Finding:
    """The finding of a comparison."""
    pairs = comparison.pairs
    notes = list(comparison.notes)
    scores = [_score(name, pairs, options.level) for name in pairs[0].before.scores]
    names = list(pairs[0].before.classes)
    present = [name for name in names if any(_both(pair, name) for pair in pairs)]
    class_level = 1 - (1 - options.level) / max(1, len(present))
    overall, of_classes = _over_images(pairs, options, notes)
    images = of_classes or [None] * len(names)
    classes = [_class(name, pairs, class_level, image) for name, image in zip(names, images, strict=True)]
    notes += _about_classes(classes, pairs)
    return Finding(comparison, scores, classes, class_level, overall, notes)


def score_of(name: str) -> Value:
    """Reads a score."""
    return lambda run: run.scores[name]


def class_score_of(name: str) -> Value:
    """Reads the IoU of a class that occurs."""

    def value(run: Run) -> float:
        found = run.classes[name]
        assert found is not None
        return found

    return value


def differences(pairs: Sequence[Pair], value: Value) -> Differences:
    """Of each setting and seed, in points."""
    before = {(pair.before.setting, pair.before.seed): value(pair.before) for pair in pairs}
    after = {(pair.after.setting, pair.after.seed): value(pair.after) for pair in pairs}
    return _by_setting(paired_differences(before, after))


def _by_setting(values: Mapping[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for (setting, seed), value in values.items():
        found.setdefault(setting, {})[seed] = value
    return found


def _means(pairs: Sequence[Pair], value: Value) -> tuple[float, float]:
    """Without and with the head; every setting counts the same, as in the difference."""
    sides = ([pair.before for pair in pairs], [pair.after for pair in pairs])
    tables = [_by_setting({(run.setting, run.seed): value(run) for run in side}) for side in sides]
    before, after = (float(np.mean([np.mean(list(s.values())) for s in table.values()])) for table in tables)
    return before, after


def _score(name: str, pairs: Sequence[Pair], level: float) -> Score:
    found = estimates(differences(pairs, score_of(name)), level)
    headline = found[0]
    more = more_needed(headline) if headline.known and headline.sign == 0 else None
    return Score(name, *_means(pairs, score_of(name)), found, more)


def _class(name: str, pairs: Sequence[Pair], level: float, image: Estimate | None) -> ClassScore:
    chosen = [pair for pair in pairs if _both(pair, name)]
    if not chosen:
        return ClassScore(name, 0, math.nan, math.nan, None, image)
    value = class_score_of(name)
    estimate = estimates(differences(chosen, value), level)[0]
    return ClassScore(name, len(chosen), *_means(chosen, value), estimate, image)


def _both(pair: Pair, name: str) -> bool:
    return pair.before.classes[name] is not None and pair.after.classes[name] is not None


def _over_images(
    pairs: Sequence[Pair], options: Options, notes: list[str]
) -> tuple[Estimate | None, list[Estimate | None] | None]:
    counts = [(pair.before.counts, pair.after.counts) for pair in pairs]
    known = [(before, after) for before, after in counts if before is not None and after is not None]
    if len(known) < len(pairs):
        return None, None
    first = known[0][0].truth
    if any(before.truth.shape != first.shape or (before.truth != first).any() for before, _ in known):
        notes.append("The pairs were tested on different images, so that nothing is said of other images.")
        return None, None
    if len(first) < 2:
        notes.append("One test image: nothing is said of other images.")
        return None, None
    return image_bootstrap(known, options.level, options.resamples, options.seed)


def _about_classes(classes: Sequence[ClassScore], pairs: Sequence[Pair]) -> list[str]:
    absent = [c.name for c in classes if c.pairs == 0]
    partial = [f"{c.name} ({c.pairs} of {len(pairs)} pairs)" for c in classes if 0 < c.pairs < len(pairs)]
    notes = []
    if absent:
        notes.append(f"Without ground truth in the test images, and left out: {', '.join(absent)}.")
    if partial:
        notes.append(f"In some pairs only, and taken from these: {', '.join(partial)}.")
    return notes


def ordered(finding: Finding) -> list[ClassScore]:
    """The classes that occur, the largest gain first."""
    present = [score for score in finding.classes if score.pairs]
    return sorted(present, key=lambda score: -score.difference)


def strongest(scores: Sequence[ClassScore], most: int | None) -> list[ClassScore]:
    """Those that differ most, in the order they have."""
    if most is None or len(scores) <= most:
        return list(scores)
    kept = sorted(scores, key=lambda score: -abs(score.difference))[:most]
    return [score for score in scores if score in kept]


def as_json(finding: Finding) -> dict[str, Any]:
    """Plain types; NaN becomes None."""
    comparison = finding.comparison
    return {
        "label": comparison.label,
        "baseline": comparison.baseline,
        "variant": comparison.variant,
        "pairs": [
            {
                "seed": pair.after.seed,
                "setting": pair.after.setting,
                "sources": [pair.before.source, pair.after.source],
                "without": dict(pair.before.scores),
                "with": dict(pair.after.scores),
            }
            for pair in comparison.pairs
        ],
        "scores": [_plain(asdict(score)) for score in finding.scores],
        "classes": [_plain(asdict(score)) for score in finding.classes],
        "class_level": finding.class_level,
        "images": None if finding.images is None else _plain(asdict(finding.images)),
        "notes": finding.notes,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
