"""Finds the partner of each training: same seed, same setting, and every other choice the same but the head's."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from brpg_lib.benchmarks.compare.count_files import require_same_images
from brpg_lib.benchmarks.compare.runs import WITHOUT, Run, require_same_classes

MOST_LISTED = 8


@dataclass(frozen=True)
class Pair:
    """Two trainings that differ in the head only."""

    before: Run
    after: Run


@dataclass(frozen=True)
class Comparison:
    """All pairs that answer one question.

    Attributes:
        label: Choices that tell it from other comparisons, such as the framework; may be empty.
        baseline: Name of the variant compared with.
        variant: Name of the other one.
        pairs: At least one.
        notes: What a reader has to know.
    """

    label: str
    baseline: str
    variant: str
    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.variant} ({self.label})" if self.label else self.variant


def compare(
    before: Sequence[Run], after: Sequence[Run], allow_unpaired: bool = False
) -> tuple[list[Comparison], list[str]]:
    """All comparisons: one for each variant, and for each framework, dataset, network, length, ...

    Args:
        before: Trainings of one variant, the baseline.
        after: Those of the others.
        allow_unpaired: Leave out trainings without partner, and list them, instead of refusing.

    Returns:
        These, and a note on what was left out.

    Raises:
        ValueError: A training is there twice, has no partner, or differs from it in more than the head.
    """
    _require_different([*before, *after])
    label_of = _labels([*before, *after])
    found, lonely = [], []
    for variant in dict.fromkeys(run.variant for run in after):
        chosen = {_key(run): run for run in after if run.variant == variant}
        groups = {_group(run) for run in chosen.values()}
        partners = {_key(run): run for run in before}
        alone = [run for key, run in chosen.items() if key not in partners]
        without = [run for key, run in partners.items() if key not in chosen]
        _require_same_settings(without, alone)
        lonely += [(run, before[0].variant) for run in alone]
        lonely += [(run, variant) for run in without if _group(run) in groups]
        for group in sorted(groups, key=label_of.__getitem__):
            pairs = [
                Pair(partners[key], run) for key, run in chosen.items() if _group(run) == group and key in partners
            ]
            if pairs:
                pairs.sort(key=lambda pair: (_natural(pair.after.setting), _natural(pair.after.seed)))
                found.append(Comparison(label_of[group], before[0].variant, variant, pairs))
    reached = {_group(run) for run in after}
    lonely += [(run, after[0].variant) for run in before if _group(run) not in reached]
    _require_partners(lonely, allow_unpaired, bool(found))
    for comparison in found:
        _check(comparison)
    listed = list(dict.fromkeys(f"{run.source} ({run.variant}, {run.place})" for run, _ in lonely))
    return found, [f"Left out, without partner: {'; '.join(listed)}."] if listed else []


def _group(run: Run) -> str:
    return json.dumps(run.fixed, sort_keys=True, default=str)


def _key(run: Run) -> Hashable:
    return _group(run), run.setting, run.seed


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``seed 10`` behind ``seed 9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _require_different(runs: Sequence[Run]) -> None:
    known: dict[Hashable, Run] = {}
    for run in runs:
        twin = known.setdefault((run.variant, _key(run)), run)
        if twin is not run:
            raise ValueError(
                f"{run.source}: expected one training of {run.variant!r} with {run.place}, "
                f"found another in {twin.source}"
            )


def _require_same_settings(before: Sequence[Run], after: Sequence[Run]) -> None:
    """No two trainings without partner would be partners if they had been trained alike."""
    for run in after:
        same = [other for other in before if (other.seed, other.setting) == (run.seed, run.setting)]
        if same:
            nearest = min(same, key=lambda other: len(_differing(other, run)))
            fields = _differing(nearest, run)
            shown = "; ".join(f"{n}: {nearest.fixed.get(n)!r} and {run.fixed.get(n)!r}" for n in fields[:MOST_LISTED])
            raise ValueError(
                f"{nearest.source} and {run.source}: expected partners that differ in the head only, found different "
                f"{', '.join(fields[:MOST_LISTED])} ({shown})"
            )
        moved = [other for other in before if other.seed == run.seed and _group(other) == _group(run)]
        if len(moved) == 1 and sum(other.seed == run.seed for other in after) == 1:
            raise ValueError(
                f"{moved[0].source} and {run.source}: expected the same setting (split) for seed {run.seed}, found "
                f"{moved[0].setting or 'none'} and {run.setting or 'none'}"
            )


def _differing(one: Run, other: Run) -> list[str]:
    names = [*one.fixed, *(name for name in other.fixed if name not in one.fixed)]
    return [name for name in names if one.fixed.get(name) != other.fixed.get(name)]


def _require_partners(lonely: Sequence[tuple[Run, str]], allowed: bool, any_pair: bool) -> None:
    if lonely and not (allowed and any_pair):
        shown = [f"  {run.source}: {run.place} has {run.variant!r}, but not {missing!r}" for run, missing in lonely]
        more = f"\n  and {len(shown) - MOST_LISTED} more" if len(shown) > MOST_LISTED else ""
        advice = "; --allow-unpaired leaves them out" if any_pair else ", and there is no pair at all"
        raise ValueError(
            f"expected two trainings for every seed and setting, found {len(lonely)} without partner{advice}:\n"
            + "\n".join(shown[:MOST_LISTED]) + more
        )  # fmt: skip


def _check(comparison: Comparison) -> None:
    """What all trainings of a comparison have to share, and what they had better share."""
    pairs = comparison.pairs
    require_same_classes([run for pair in pairs for run in (pair.before, pair.after)])
    for pair in pairs:
        require_same_images(pair.before, pair.after)
    for side in ([pair.before for pair in pairs], [pair.after for pair in pairs]):
        first = side[0]
        for run in side[1:]:
            names = [n for n in {**first.head, **run.head} if first.head.get(n) != run.head.get(n)]
            if names and run.variant != WITHOUT:
                raise ValueError(
                    f"{first.source} and {run.source}: expected one head in all trainings of {run.variant!r}, found "
                    f"different {', '.join(names)}"
                )
    for name in pairs[0].before.surroundings:
        found = {(pair.before.surroundings.get(name), pair.after.surroundings.get(name)) for pair in pairs}
        unlike = sorted(f"{one} without, {other} with" for one, other in found if one != other)
        if unlike:
            comparison.notes.append(
                f"Partners ran with different {name} ({unlike[0]}), which is part of the difference."
            )


def _labels(runs: Sequence[Run]) -> dict[str, str]:
    """What tells groups apart: framework and data, and all that varies where these are not enough."""
    fixed = {_group(run): run.fixed for run in runs}
    usual = ("framework", "data")
    labels = {group: ", ".join(str(s[name]) for name in usual if name in s) for group, s in fixed.items()}
    if len(set(labels.values())) == len(labels):
        return labels
    names = dict.fromkeys(name for settings in fixed.values() for name in settings if name not in usual)
    varied = [name for name in names if len({json.dumps(s.get(name), default=str) for s in fixed.values()}) > 1]
    return {
        group: ", ".join([*filter(None, [labels[group]]), *(f"{name} {settings.get(name)}" for name in varied)])
        for group, settings in fixed.items()
    }
