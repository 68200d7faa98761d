"""Paired differences: their means, intervals, and how many pairs a decision needs.

Everything is in points, the unit of the scores. Intervals are two-sided and hold with probability ``level`` if the
differences of independent units (seeds, or settings) are near a normal distribution; what the units are is part of
every :class:`Estimate`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import special

LEVEL = 0.95

Differences = Mapping[str, Mapping[str, float]]
"""Of each setting, of each of its seeds: the score with the head less the score without."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A mean difference and its interval.

    Attributes:
        mean: In points.
        low: Lower end of the interval in points; NaN where there is one unit only.
        high: Upper end, likewise.
        count: Number of independent units.
        unit: What they are, in the singular: ``"seed"``, ``"setting"``, ``"pair"`` or ``"image"``.
        scope: What the interval speaks of.
        level: Probability with which it holds the mean over all such units.
        error: Standard error of the mean in points; NaN where there is one unit only.
    """

    mean: float
    low: float
    high: float
    count: int
    unit: str
    scope: str
    level: float
    error: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below zero, else 0."""
        return (self.low > 0) - (self.high < 0)


def paired_differences(before: Mapping[Key, float], after: Mapping[Key, float]) -> dict[Key, float]:
    """Differences of what both have, in the order of ``after``.

    >>> paired_differences({0: 70.0, 1: 71.0}, {0: 72.0, 1: 71.5, 2: 75.0})
    {0: 2.0, 1: 0.5}
    """
    return {key: value - before[key] for key, value in after.items() if key in before}


def students(values: Sequence[float], level: float = LEVEL, unit: str = "seed", scope: str = "other seeds") -> Estimate:
    """Student's interval of the mean of independent differences.

    Args:
        values: ``(n,)`` differences in points, at least one.
        level: Of the interval.
        unit: What one value is of.
        scope: What the interval speaks of.

    >>> found = students([1.0, 2.0, 3.0])  # 4.303 / sqrt(3) = 2.48
    >>> f"{found.mean:.1f} [{found.low:.2f}, {found.high:.2f}]"
    '2.0 [-0.48, 4.48]'
    """
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return _estimate(float(array.mean()), math.nan, 0, len(array), unit, scope, level)
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    return _estimate(float(array.mean()), error, len(array) - 1, len(array), unit, scope, level)


def _estimate(mean: float, error: float, freedom: float, count: int, unit: str, scope: str, level: float) -> Estimate:
    reach = float(special.stdtrit(freedom, (1 + level) / 2)) * error if freedom > 0 else math.nan
    return Estimate(mean, mean - reach, mean + reach, count, unit, scope, level, error)


def other_seeds(differences: Differences, level: float = LEVEL) -> Estimate | None:
    """What other seeds would give on the settings at hand: the mean over settings of the mean over seeds.

    Where every setting has the same seeds, the values of one seed may depend on each other (they share initial
    weights): the unit is then the seed, with its mean over settings. Otherwise pairs are taken as independent within
    their settings, the settings' variances are summed, and the degrees of freedom are Welch and Satterthwaite's; where
    a setting has a single seed, the variance is pooled over settings.

    Args:
        differences: In points.
        level: Of the interval.

    Returns:
        None where no setting has two seeds.

    >>> crossed = other_seeds({"1/8": {"0": 1.0, "1": 2.0, "2": 3.0}, "1/4": {"0": 1.0, "1": 2.0, "2": 3.0}})
    >>> crossed.count, crossed.unit, round(crossed.low, 2)
    (3, 'seed', -0.48)
    >>> nested = other_seeds({"1/8": {"0": 1.0, "1": 2.0, "2": 3.0}, "1/4": {"3": 1.0, "4": 2.0, "5": 3.0}})
    >>> nested.count, nested.unit, round(nested.low, 2)
    (6, 'pair', 0.87)
    """
    settings = [np.array(list(seeds.values()), dtype=float) for seeds in differences.values()]
    sizes = np.array([len(values) for values in settings])
    if sizes.max() < 2:
        return None
    if len(settings) == 1:
        return students(settings[0].tolist(), level)
    scope = f"other seeds, on these {len(settings)} settings"
    if crossed(differences):
        of_seed = [
            np.mean([seeds[seed] for seeds in differences.values()]) for seed in next(iter(differences.values()))
        ]
        return students([float(value) for value in of_seed], level, "seed", scope)
    squares = np.array([((values - values.mean()) ** 2).sum() for values in settings], dtype=np.float64)
    pooled = squares.sum() / (sizes - 1).sum()
    variances = np.where(sizes > 1, squares / np.maximum(sizes - 1, 1), pooled) / sizes
    freedom = float((sizes - 1).sum())
    if sizes.min() > 1 and variances.sum() > 0:
        freedom = float(variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum())
    mean = float(np.mean([values.mean() for values in settings]))
    error = math.sqrt(variances.sum()) / len(settings)
    return _estimate(mean, error, freedom, int(sizes.sum()), "pair", scope, level)


def other_settings(differences: Differences, level: float = LEVEL) -> Estimate | None:
    """What other settings like these would give: Student's interval over the settings' means.

    With the same seeds in every setting it speaks of other settings with these seeds; with seeds of their own, of other
    seeds too.

    Returns:
        None for a single setting.

    >>> found = other_settings({"a": {"0": 1.0}, "b": {"1": 2.0}, "c": {"2": 3.0}})
    >>> found.count, found.unit, found.scope
    (3, 'pair', 'other settings and seeds')
    >>> other_settings({"a": {"0": 1.0, "1": 1.5}, "b": {"0": 2.0, "1": 2.5}}).scope
    'other settings, with these 2 seeds'
    """
    if len(differences) < 2:
        return None
    means = [float(np.mean(list(seeds.values()))) for seeds in differences.values()]
    scope = "other settings and seeds"
    single = all(len(seeds) == 1 for seeds in differences.values())
    if crossed(differences):
        seeds = len(next(iter(differences.values())))
        scope = f"other settings, with {'this one seed' if seeds == 1 else f'these {seeds} seeds'}"
    return students(means, level, "pair" if single else "setting", scope)


def crossed(differences: Differences) -> bool:
    """Whether every setting has the same seeds.

    >>> crossed({"a": {"0": 1.0}, "b": {"0": 2.0}}), crossed({"a": {"0": 1.0}, "b": {"1": 2.0}})
    (True, False)
    """
    first, *others = (seeds.keys() for seeds in differences.values())
    return all(seeds == first for seeds in others)


def estimates(differences: Differences, level: float = LEVEL) -> list[Estimate]:
    """All that can be said, the headline first.

    The headline speaks of other settings where there are three or more, or where no setting has two seeds; else of
    other seeds.

    >>> [e.scope for e in estimates({"": {"0": 1.0, "1": 2.0}})]
    ['other seeds']
    """
    seeds, settings = other_seeds(differences, level), other_settings(differences, level)
    ordered = (settings, seeds) if len(differences) >= 3 else (seeds, settings)
    found = [estimate for estimate in ordered if estimate is not None]
    if not found:
        ((value,),) = (tuple(seeds.values()) for seeds in differences.values())
        found = [students([value], level)]
    return found


def mean_with_interval(values: Sequence[float], level: float = LEVEL) -> str:
    """``mean [low, high]`` of independent differences; the mean alone for one, nothing for none.

    >>> mean_with_interval([1.0, 2.0, 3.0]), mean_with_interval([1.5]), mean_with_interval([])
    ('+2.0 [-0.5, +4.5]', '+1.5', '')
    """
    return text(students(values, level)) if values else ""


def text(estimate: Estimate, digits: int = 1) -> str:
    """``mean [low, high]``, with more digits where fewer would round an end that is not zero to it.

    >>> text(Estimate(0.3, 0.02, 0.58, 6, "seed", "other seeds", 0.95))
    '+0.30 [+0.02, +0.58]'
    """
    ends = [estimate.low, estimate.high] if estimate.known else []
    while digits < 3 and any(end != 0 and round(end, digits) == 0 for end in ends):
        digits += 1
    shown = [signed(value, digits) for value in (estimate.mean, *ends)]
    return shown[0] + (f" [{shown[1]}, {shown[2]}]" if ends else "")


def signed(value: float, digits: int = 1) -> str:
    """With its sign, and zero as ``+0.0``.

    >>> signed(-0.04), signed(1.25, 2)
    ('+0.0', '+1.25')
    """
    return f"{round(value, digits) + 0.0:+.{digits}f}"
