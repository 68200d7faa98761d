"""A paired bootstrap over test images: what other images would give, for the trained networks at hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brpg_lib.benchmarks.compare.statistics import LEVEL, Estimate

RESAMPLES = 10_000
SCOPE = "other images, not other seeds"
BLOCK = 4_000_000
"""Numbers held at once: image weights of a block of resamples."""

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class ImageCounts:
    """What the IoU of a set of images needs from each one, all ``(N, C)`` pixels.

    Attributes:
        hits: Diagonal of the confusion matrices.
        truth: Their row sums.
        predicted: Their column sums.
    """

    hits: Counts
    truth: Counts
    predicted: Counts

    @classmethod
    def of(cls, confusion: NDArray[np.integer]) -> ImageCounts:
        """From confusion matrices ``(N, C, C)``, rows: truth.

        >>> counts = ImageCounts.of(np.array([[[3, 1], [0, 4]]]))
        >>> iou(counts.hits, counts.truth, counts.predicted).tolist()
        [[75.0, 80.0]]
        """
        hits = np.diagonal(confusion, axis1=1, axis2=2)
        return cls(*(array.astype(float) for array in (hits, confusion.sum(2), confusion.sum(1))))

    def scores(self) -> NDArray[np.float64]:
        """IoU ``(C,)`` in percent over all images; NaN where a class has no ground truth."""
        return iou(self.hits.sum(0), self.truth.sum(0), self.predicted.sum(0))


def iou(hits: Counts, truth: Counts, predicted: Counts) -> NDArray[np.float64]:
    """IoU in percent, of the arguments' shape; NaN where there is no ground truth, as in the example's metrics."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(truth > 0, 100 * hits / (truth + predicted - hits), np.nan)


def image_bootstrap(
    pairs: list[tuple[ImageCounts, ImageCounts]], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Estimate, list[Estimate | None]]:
    """Intervals of the difference over resampled test sets; the same images are drawn for every run.

    Args:
        pairs: Counts without and with the head, of the same N images in all pairs; the mean over pairs counts.
        level: Of the intervals.
        resamples: Number of test sets drawn.
        seed: Of the draws.

    Returns:
        The difference of mIoU with its percentile interval. For each class the difference of IoU with intervals that
        hold simultaneously: standard errors of the bootstrap times the quantile of the largest studentized deviation
        over classes; None for absent classes.

    >>> rng = np.random.default_rng(0)
    >>> truth = rng.integers(50, 100, (40, 2, 1))
    >>> right, better = (np.minimum(truth, truth * share // 100) for share in (70, 80))
    >>> def confusion(hits): return np.concatenate([np.concatenate([hits[:, :1], (truth - hits)[:, :1]], 2),
    ...     np.concatenate([(truth - hits)[:, 1:], hits[:, 1:]], 2)], 1)
    >>> pair = ImageCounts.of(confusion(right)), ImageCounts.of(confusion(better))
    >>> overall, classes = image_bootstrap([pair], resamples=500)
    >>> 10 < overall.low < overall.mean < overall.high < 15, overall.count, len(classes)
    (True, 40, 2)
    """
    if not pairs:
        raise ValueError("pairs: expected at least one, found none")
    images, classes = pairs[0][0].hits.shape
    numbers = [array for pair in pairs for c in pair for array in (c.hits, c.truth, c.predicted)]
    table = np.concatenate(numbers, axis=1)
    rng = np.random.default_rng(seed)
    observed = _class_differences(table.sum(0, keepdims=True), len(pairs), classes)
    mean = float(_mean_difference(table.sum(0, keepdims=True), len(pairs), classes)[0])
    drawn, drawn_classes = [], []
    size = max(1, min(resamples, BLOCK // images))
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        chosen = rng.integers(images, size=(count, images)) + images * np.arange(count)[:, None]
        weights = np.bincount(chosen.ravel(), minlength=count * images).reshape(count, images).astype(float)
        sums = weights @ table
        drawn.append(_mean_difference(sums, len(pairs), classes))
        drawn_classes.append(_class_differences(sums, len(pairs), classes))
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    overall = Estimate(mean, float(low), float(high), images, "image", SCOPE, level)
    return overall, _simultaneous(observed[0], np.concatenate(drawn_classes), images, level)


def _per_run(sums: Counts, pairs: int, classes: int) -> NDArray[np.float64]:
    """IoU ``(R, pairs, 2, C)`` from sums ``(R, pairs * 2 * 3 * C)``."""
    split = sums.reshape(len(sums), pairs, 2, 3, classes)
    return iou(split[..., 0, :], split[..., 1, :], split[..., 2, :])


def _mean_difference(sums: Counts, pairs: int, classes: int) -> NDArray[np.float64]:
    """Of mIoU, ``(R,)``."""
    found = _per_run(sums, pairs, classes)
    present = ~np.isnan(found)
    scores = np.where(present, found, 0).sum(-1) / np.maximum(present.sum(-1), 1)
    difference: NDArray[np.float64] = (scores[..., 1] - scores[..., 0]).mean(-1)
    return difference


def _class_differences(sums: Counts, pairs: int, classes: int) -> NDArray[np.float64]:
    """Of each class, ``(R, C)``; NaN where a resample has no ground truth of it."""
    found = _per_run(sums, pairs, classes)
    difference: NDArray[np.float64] = (found[:, :, 1] - found[:, :, 0]).mean(1)
    return difference


def _simultaneous(
    observed: NDArray[np.float64], drawn: NDArray[np.float64], images: int, level: float
) -> list[Estimate | None]:
    present = ~np.isnan(observed)
    errors = np.full(len(observed), np.nan)
    errors[present] = np.nanstd(drawn[:, present], axis=0)
    varied = present & (errors > 0)
    factor = 0.0
    if varied.any():
        deviations = np.abs(drawn[:, varied] - observed[varied]) / errors[varied]
        factor = float(np.quantile(np.nan_to_num(deviations).max(1), level))
    return [
        Estimate(float(o), float(o - factor * e), float(o + factor * e), images, "image", SCOPE, level) if p else None
        for o, e, p in zip(observed, errors, present, strict=True)
    ]
