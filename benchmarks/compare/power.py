"""How many pairs a decision needs."""

from __future__ import annotations

import math

from scipy import special, stats

from brpg_lib.benchmarks.compare.statistics import LEVEL, Estimate

POWER = 0.8
MOST_UNITS = 1000
"""More seeds or settings than these are not worth asking for."""


def units_needed(mean: float, deviation: float, level: float = LEVEL, power: float = POWER) -> int | None:
    """Units with which a two-sided paired t test finds a difference of this size (noncentral t).

    Args:
        mean: True difference in points.
        deviation: Standard deviation between units in points.
        level: Of the interval that has to exclude zero; the test is at ``1 - level``.
        power: Probability that it does.

    Returns:
        None where it takes more than :data:`MOST_UNITS`.

    >>> units_needed(1.0, 1.0), units_needed(0.5, 1.0), units_needed(0.01, 1.0)
    (10, 34, None)
    """
    if mean == 0:
        return None

    def found(units: int) -> float:
        critical = float(special.stdtrit(units - 1, (1 + level) / 2))
        shift = abs(mean) / deviation * math.sqrt(units)
        return float(stats.nct.sf(critical, units - 1, shift))  # the other tail adds nothing where the power is high

    if deviation == 0:
        return 2
    low, high = 1, 2
    while found(high) < power:
        low, high = high, 2 * high
        if low >= MOST_UNITS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return high if high <= MOST_UNITS else None


def more_needed(estimate: Estimate) -> int | None:
    """Further units that would tell a difference of the observed size, or None for more than are worth running.

    >>> from brpg_lib.benchmarks.compare.statistics import students
    >>> more_needed(students([0.0, 1.0, 2.0])), more_needed(students([-1.0, 1.0]))
    (7, None)
    """
    needed = units_needed(estimate.mean, estimate.error * math.sqrt(estimate.count), estimate.level)
    return None if needed is None else max(1, needed - estimate.count)
