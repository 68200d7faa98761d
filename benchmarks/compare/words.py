"""Verdicts in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from brpg_lib.benchmarks.compare.analysis import Finding, Score, differences, score_of
from brpg_lib.benchmarks.compare.power import MOST_UNITS, POWER
from brpg_lib.benchmarks.compare.statistics import Estimate, estimates, text

ONE_PAIR = (
    "No interval can be had from one pair. Run at least two more: with three pairs an interval reaches 2.5 standard "
    "deviations of the differences to each side, with six 1.05."
)


def verdict(estimate: Estimate) -> str:
    """In two or three words.

    >>> verdict(Estimate(1.2, 0.4, 2.0, 6, "seed", "other seeds", 0.95))
    'helps'
    """
    if not estimate.known:
        return "one pair"
    if estimate.low == estimate.high == 0:
        return "no difference"
    return {1: "helps", -1: "harms", 0: "cannot tell yet"}[estimate.sign]


def sentences(score: Score, pairs: int) -> list[str]:
    """The verdict with its numbers, and what would decide it.

    Args:
        score: What it is about.
        pairs: Number of pairs.

    >>> found = Score("mIoU", 70, 71.2, [Estimate(1.2, 0.4, 2.0, 6, "seed", "other seeds", 0.95, 0.31)], None)
    >>> sentences(found, 6)
    ['helps: +1.2 mIoU [+0.4, +2.0] over 6 pairs (95% interval; speaks of other seeds).']
    >>> found = Score("mIoU", 70, 70.4, [Estimate(0.4, -0.5, 1.3, 6, "seed", "other seeds", 0.95, 0.35)], 32)
    >>> for sentence in sentences(found, 6): print(sentence)
    cannot tell yet: +0.4 mIoU [-0.5, +1.3] over 6 pairs (95% interval; speaks of other seeds).
    About 32 more seeds would tell a difference of this size (t test, power 80%).
    The interval excludes gains above 1.3 and losses above 0.5.
    """
    estimate = score.headline
    mean, _, interval = text(estimate).partition(" ")
    said = f"{verdict(estimate)}: {mean} {score.name}"
    if not estimate.known:
        return [f"{said}.", ONE_PAIR]
    said += f" {interval} over {counted(pairs, 'pair')}"
    if estimate.count != pairs:
        said += f" of {counted(estimate.count, estimate.unit)}"
    said += f" ({estimate.level * 100:g}% interval; speaks of {estimate.scope})."
    if estimate.low == estimate.high:
        return [said, "All differences are equal: are the trainings copies of each other?"]
    return [said] if estimate.sign else [said, _more(score), excluded(estimate)]


def needed(score: Score) -> str:
    """Further units for a decision, in a cell."""
    if not score.headline.known:
        return "2 or more"
    if score.headline.sign or score.headline.low == score.headline.high:
        return ""
    return f"over {MOST_UNITS}" if score.more is None else counted(score.more, score.headline.unit)


def _more(score: Score) -> str:
    units = f"{score.headline.unit}{'' if score.more == 1 else 's'}"
    how = f"(t test, power {POWER:.0%})"
    if score.more is None:
        return f"No number of {units} worth running (up to {MOST_UNITS}) would tell a difference this small {how}."
    return f"About {score.more} more {units} would tell a difference of this size {how}."


def excluded(estimate: Estimate) -> str:
    """How large a gain or loss the interval leaves possible.

    >>> excluded(Estimate(0.4, -0.5, 1.3, 6, "seed", "other seeds", 0.95))
    'The interval excludes gains above 1.3 and losses above 0.5.'
    """
    return f"The interval excludes gains above {abs(estimate.high):.1f} and losses above {abs(estimate.low):.1f}."


def others(score: Score) -> list[str]:
    """What the estimates besides the headline say, and whether they agree with it."""
    said = []
    for estimate in score.estimates[1:]:
        line = f"{score.name}, {estimate.scope}: {text(estimate)} ({counted(estimate.count, estimate.unit)})"
        if verdict(estimate) != verdict(score.headline):
            line += f", by itself: {verdict(estimate)}"
        said.append(f"{line}.")
    return said


def of_images(finding: Finding) -> str:
    """What the bootstrap says; empty where there is none."""
    estimate = finding.images
    if estimate is None:
        return ""
    return (
        f"mIoU, {estimate.scope}: {text(estimate, 2)} (percentile bootstrap over {counted(estimate.count, 'image')}; "
        "the trained networks stay the same)."
    )


def together(findings: Sequence[Finding], level: float) -> str:
    """What remains of several verdicts if their intervals hold simultaneously at a level."""
    adjusted = 1 - (1 - level) / len(findings)
    remaining = []
    for finding in findings:
        score = finding.scores[0]
        estimate = estimates(differences(finding.comparison.pairs, score_of(score.name)), adjusted)[0]
        if estimate.sign:
            remaining.append(f"{finding.comparison.name} ({verdict(estimate)}: {text(estimate)})")
    return (
        f"{len(findings)} comparisons, each with an interval of its own: one in {1 / (1 - level):.0f} excludes 0 by "
        "chance where nothing differs. With intervals that hold simultaneously (Bonferroni), "
        + (f"these exclude 0: {'; '.join(remaining)}." if remaining else "none excludes 0.")
    )


def counted(number: int, unit: str) -> str:
    """With its plural.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {unit}{'' if number == 1 else 's'}"
