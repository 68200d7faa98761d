"""Tables of a comparison, and the page that holds them with their pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from brpg_lib.benchmarks.compare import picture, words
from brpg_lib.benchmarks.compare.analysis import Finding, ordered, strongest
from brpg_lib.benchmarks.compare.statistics import Estimate, signed, text
from brpg_lib.benchmarks.tables import Table
from brpg_lib.files import write_atomically

PAGE = "compare.md"
MOST_CLASSES = 40
"""Shown in the terminal; the page has all."""


def overviews(findings: Sequence[Finding]) -> list[Table]:
    """A table for each score, the verdict's first, with a row for each comparison."""
    return [_overview(findings, index) for index in range(max(len(finding.scores) for finding in findings))]


def _overview(findings: Sequence[Finding], index: int) -> Table:
    chosen = [finding for finding in findings if index < len(finding.scores)]
    first = chosen[0].scores[index]
    labels = {finding.comparison.label for finding in findings}
    shared = labels.pop() if len(labels) == 1 else ""
    table = Table(
        f"{shared + ': ' if shared else ''}{first.name} without ({chosen[0].comparison.baseline}) and with the head, "
        "percent",
        ("", "pairs", "without", "with", f"difference [{first.headline.level * 100:g}%]", "verdict", "more needed"),
    )
    for finding in chosen:
        score, comparison = finding.scores[index], finding.comparison
        cells = [comparison.variant if shared else comparison.name, str(len(comparison.pairs))]
        cells += [f"{score.before:.1f}", f"{score.after:.1f}", text(score.headline)]
        table.rows.append([*cells, words.verdict(score.headline), words.needed(score)])
    if index == 0:
        table.notes.append("Difference: with the head less without, at the same seed and setting; Student's intervals.")
    else:
        table.notes.append(f"Intervals of this score by itself; the one to judge by is {findings[0].scores[0].name}.")
    return table


def classes(finding: Finding, most: int | None = None) -> Table:
    """A row for each class that occurs, the largest gain first.

    Args:
        finding: With classes.
        most: Rows; the classes that differ least are left out.
    """
    with_images = finding.images is not None
    table = Table(
        f"{finding.comparison.name}: IoU of each class, percent",
        ("class", "without", "with", "difference [interval]", *(["over images [interval]"] if with_images else []), ""),
    )
    present = ordered(finding)
    kept = strongest(present, most)
    for score in kept:
        clear = score.estimate.sign if score.estimate is not None else 0
        row = [score.name, f"{score.before:.1f}", f"{score.after:.1f}", _cell(score.estimate)]
        row += [_cell(score.images)] if with_images else []
        table.rows.append([*row, {1: "higher", -1: "lower", 0: ""}[clear]])
    level = finding.scores[0].headline.level
    if any(score.estimate is not None and score.estimate.known for score in kept):
        table.notes.append(
            f"The intervals of all {len(present)} classes hold simultaneously at {level * 100:g}% (Bonferroni: each at "
            f"{finding.class_level * 100:.4g}%); higher and lower: they exclude 0."
        )
    if with_images:
        table.notes.append(
            f"Over images: other images, not other seeds; simultaneous at {level * 100:g}% "
            "(bootstrap of the largest deviation)."
        )
    if len(kept) < len(present):
        table.notes.append(f"{len(present) - len(kept)} classes that differ less are on the page.")
    return table


def pairs(finding: Finding) -> Table:
    """Every pair, to check what was compared with what."""
    score = finding.scores[0].name
    table = Table(
        f"{finding.comparison.name}: {score} of every pair", ("setting", "seed", "without", "with", "difference")
    )
    for pair in finding.comparison.pairs:
        before, after = pair.before.scores[score], pair.after.scores[score]
        table.rows.append(
            [pair.after.setting, pair.after.seed, f"{before:.2f}", f"{after:.2f}", signed(after - before, 2)]
        )
    return table


def sentences(finding: Finding) -> list[str]:
    """All that is said of a comparison; the verdict first."""
    said = words.sentences(finding.scores[0], len(finding.comparison.pairs))
    for score in finding.scores:
        said += words.others(score)
    image = words.of_images(finding)
    return [*said, *([image] if image else []), *finding.notes]


def write(findings: Sequence[Finding], notes: Sequence[str], folder: Path) -> None:
    """The page and its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# Does it help?", *notes, *(table.markdown().strip() for table in overviews(findings))]
    for index, finding in enumerate(findings):
        name = picture_name(index, len(findings))
        picture.save(finding, folder / name)
        parts.append(f"## {finding.comparison.name}")
        parts.append("\n".join(f"- {sentence}" for sentence in sentences(finding)))
        parts.append(f"![Pairs, difference and classes]({name})")
        parts += [classes(finding).markdown().strip()] if ordered(finding) else []
        parts.append(pairs(finding).markdown().strip())
    write_atomically("\n\n".join(parts) + "\n", folder / PAGE)


def picture_name(index: int, count: int) -> str:
    """Of a comparison's file."""
    return "compare.png" if count == 1 else f"compare-{index + 1:0{int(math.log10(count)) + 1}d}.png"


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else text(estimate)
