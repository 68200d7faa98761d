"""The method in plain loops: slow, obviously right, and what everything fast is tested against.

One class, one prototype and one pixel at a time, every intermediate materialized. Nothing here knows the package.
Group 0 holds high-confidence features, group 1 low-confidence ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HIGH, LOW = 0, 1
RARE_ROWS = 10  # a queue with fewer rows than this is too poor to cluster
Dispersion = Literal["cosine", "l2", "l2_normalized"]


class Sample(NamedTuple):
    """One sampled pixel: its feature (D,), class, group and confidence."""

    feature: Tensor
    class_id: int
    group: int
    confidence: float


class LearnStep(TypedDict):
    """Outputs of one learn step; `grad` is d loss / d concat(labeled, unlabeled features), (Bl + Bu, D, h, w)."""

    loss_labeled: float
    loss_unlabeled: float
    loss: float
    grad: Tensor
    prototypes_after: Tensor
    num_pseudo: int
    threshold_now: float


# --- Points -----------------------------------------------------------------------------------------------------------


def pseudo_threshold(iteration: int, ramp_start: int, total: int, low: float = 0.8, high: float = 0.95) -> float:
    """Confidence an unlabeled point needs at this iteration (loss); under `low` before `ramp_start` (< `total`)."""
    return low + (high - low) * (iteration - ramp_start) / (total - ramp_start)


def grid_points(height: int, width: int, grid: int) -> list[tuple[int, int]]:
    """The regular grid of (y, x) pixels whose labels supervise (loss).

    Per axis 0, s, ..., (grid - 1) s and the last pixel, s = (size - 1) // grid; all pixels if no more than `grid`.
    """
    return [(y, x) for y in _grid_axis(height, grid) for x in _grid_axis(width, grid)]


def _grid_axis(size: int, grid: int) -> list[int]:
    if size - 1 < grid:
        return list(range(size))
    step = (size - 1) // grid
    return [i * step for i in range(grid)] + [size - 1]


def upsample(features: Tensor, height: int, width: int, align_corners: bool = True) -> Tensor:
    """Features (B, D, h, w) at image resolution, (B, D, H, W) (loss)."""
    return F.interpolate(features, (height, width), mode="bilinear", align_corners=align_corners)


def downsample_labels(labels: Tensor, height: int, width: int) -> Tensor:
    """Labels (B, H, W) at feature resolution, (B, h, w) int64, by nearest-neighbour interpolation (sampling)."""
    return F.interpolate(labels[:, None].float(), (height, width), mode="nearest")[:, 0].long()


# --- Similarity, loss and update --------------------------------------------------------------------------------------


def cosine_similarity(features: Tensor, prototypes: Tensor, mask: Tensor) -> Tensor:
    """Cosine similarity of features (N, D) and prototypes (C, 2, K, D), (N, C, 2, K); -inf where the mask is False."""
    num_classes, groups, num_prototypes = mask.shape
    similarity = features.new_full((len(features), num_classes, groups, num_prototypes), -math.inf)
    for c in range(num_classes):
        for g in range(groups):
            for k in range(num_prototypes):
                if mask[c, g, k]:
                    similarity[:, c, g, k] = F.cosine_similarity(features, prototypes[c, g, k][None], dim=1)
    return similarity


def class_similarity(features: Tensor, prototypes: Tensor, mask: Tensor) -> Tensor:
    """Similarity of each feature to each class, (N, C): its most similar prototype's; -inf for a class with none."""
    return cosine_similarity(features, prototypes, mask).flatten(2).max(dim=2).values


def counted_points(targets: Tensor, mask: Tensor, ignore_index: int = 255) -> list[int]:
    """Indices of the points (N,) that count: not ignored, and of a class with a prototype."""
    return [n for n, c in enumerate(targets.tolist()) if c != ignore_index and bool(mask[c].any())]


def point_weight(class_similarities: Tensor, target: int, misclassified_weight: float) -> float:
    """Weight of one point with similarities (C,): 1, or `misclassified_weight` if another class is more similar."""
    return 1.0 if int(class_similarities.argmax()) == target else misclassified_weight


def contrastive_loss(
    features: Tensor,
    targets: Tensor,
    prototypes: Tensor,
    mask: Tensor,
    temperature: float,
    ignore_index: int = 255,
    misclassified_weight: float = 1.0,
    point_balance: float = 0.0,
) -> Tensor:
    """Prototype-contrastive loss of features (N, D) with classes (N,): the weighted mean over the points that count.

    Each class's points are weighted once more, by their total weight to the power of -`point_balance`. With no point
    that counts it is 0, still with a gradient.
    """
    zero, similarity = features.sum() * 0, class_similarity(features, prototypes, mask)
    totals: dict[int, Tensor] = {}
    weights: dict[int, float] = {}
    for n in counted_points(targets, mask, ignore_index):
        target = int(targets[n])
        weight = point_weight(similarity[n], target, misclassified_weight)
        logits = similarity[n] / temperature
        loss = weight * (torch.logsumexp(logits, dim=0) - logits[target])
        totals[target] = totals.get(target, zero) + loss
        weights[target] = weights.get(target, 0.0) + weight
    factors = {c: weight**-point_balance for c, weight in weights.items() if weight > 0}
    if not factors:
        return zero
    total = sum((factor * totals[c] for c, factor in factors.items()), zero)
    return total / sum(factor * weights[c] for c, factor in factors.items())


@torch.no_grad()
def ema_update(
    prototypes: Tensor,
    mask: Tensor,
    features: Tensor,
    classes: Tensor,
    momentum: float,
    misclassified_weight: float = 1.0,
    ignore_index: int = 255,
) -> Tensor:
    """Prototypes (C, 2, K, D) after the points (N, D) of classes (N,) moved them (loss, last paragraph).

    Each point goes to its class's most similar prototype, of either group; all choices precede all moves.
    """
    similarity = cosine_similarity(features, prototypes, mask)
    sums: dict[tuple[int, int, int], Tensor] = {}
    weights: dict[tuple[int, int, int], float] = {}
    for n in counted_points(classes, mask, ignore_index):
        c = int(classes[n])
        weight = point_weight(similarity[n].flatten(1).max(dim=1).values, c, misclassified_weight)
        g, k = divmod(int(similarity[n, c].flatten().argmax()), mask.shape[2])
        sums[c, g, k] = sums.get((c, g, k), torch.zeros_like(features[n])) + weight * features[n]
        weights[c, g, k] = weights.get((c, g, k), 0.0) + weight
    after = prototypes.clone()
    for index, weight in weights.items():
        if weight > 0:
            after[index] = momentum * prototypes[index] + (1 - momentum) * sums[index] / weight
    return after


def learn_step(
    features_labeled: Tensor,
    labels: Tensor,
    features_unlabeled: Tensor,
    pseudo_labels: Tensor,
    confidence: Tensor,
    prototypes: Tensor,
    mask: Tensor,
    *,
    iteration: int,
    ramp_start: int,
    total: int,
    threshold_range: tuple[float, float] = (0.8, 0.95),
    grid: int = 32,
    temperature: float = 0.1,
    momentum: float = 0.99,
    misclassified_weight: float = 1.0,
    ignore_index: int = 255,
    align_corners: bool = True,
) -> LearnStep:
    """One step of the learn phase on all grid points and every confident unlabeled pixel (no cap), in float64.

    Args:
        features_labeled: Student features (Bl, D, h, w).
        labels: Ground truth (Bl, H, W).
        features_unlabeled: Student features of the strong view (Bu, D, h, w).
        pseudo_labels: The teacher's labels (Bu, H, W); a pixel with `ignore_index` is never a point.
        confidence: The teacher's confidence (Bu, H, W), compared with the threshold in its own precision.
        prototypes: (C, 2, K, D), anything where `mask` (C, 2, K) is False.
        mask: Which prototypes exist.
        iteration: Global iteration, from 0.
        ramp_start: Iteration at which the threshold is `threshold_range[0]`.
        total: Iteration at which it is `threshold_range[1]`.
        threshold_range: See above.
        grid: Intervals per axis of the labeled grid.
        temperature: Divides similarities.
        momentum: Of the prototype update.
        misclassified_weight: How often a misclassified point counts, in the loss and in the update.
        ignore_index: The label of pixels that do not count.
        align_corners: Of the upsampling of features.
    """
    labeled = features_labeled.detach().double().requires_grad_()
    unlabeled = features_unlabeled.detach().double().requires_grad_()
    prototypes = prototypes.double()

    height, width = labels.shape[1:]
    large = upsample(labeled, height, width, align_corners)
    grid_pixels = [(b, y, x) for b in range(len(labels)) for y, x in grid_points(height, width, grid)]
    points_labeled, targets_labeled = _read(large, labels, grid_pixels)

    threshold = pseudo_threshold(iteration, ramp_start, total, *threshold_range)
    height, width = pseudo_labels.shape[1:]
    large = upsample(unlabeled, height, width, align_corners)
    confident = (confidence >= threshold) & (pseudo_labels != ignore_index)
    confident_pixels = [(b, y, x) for b, y, x in confident.nonzero().tolist()]
    points_unlabeled, targets_unlabeled = _read(large, pseudo_labels, confident_pixels)

    loss_labeled, loss_unlabeled = (
        contrastive_loss(points, targets, prototypes, mask, temperature, ignore_index, misclassified_weight)
        for points, targets in ((points_labeled, targets_labeled), (points_unlabeled, targets_unlabeled))
    )
    loss = loss_labeled + loss_unlabeled
    grads = torch.autograd.grad(loss, (labeled, unlabeled))

    points = torch.cat([points_labeled, points_unlabeled]).detach()
    targets = torch.cat([targets_labeled, targets_unlabeled])
    return LearnStep(
        loss_labeled=loss_labeled.item(),
        loss_unlabeled=loss_unlabeled.item(),
        loss=loss.item(),
        grad=torch.cat(grads),
        prototypes_after=ema_update(prototypes, mask, points, targets, momentum, misclassified_weight, ignore_index),
        num_pseudo=len(confident_pixels),
        threshold_now=threshold,
    )


def _read(features: Tensor, labels: Tensor, pixels: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
    """Features (N, D) of (B, D, H, W) and labels (N,) of (B, H, W) at pixels (b, y, x)."""
    b, y, x = torch.tensor(pixels, dtype=torch.long).reshape(-1, 3).unbind(1)
    return features[b, :, y, x], labels[b, y, x].long()


# --- Sampling ---------------------------------------------------------------------------------------------------------


def collect_step(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    weak_features: Tensor | None = None,
    weak_logits: Tensor | None = None,
    *,
    threshold: float = 0.8,
    floor: float = 0.0,
    class_thresholds: Sequence[float] | None = None,
    ignore_index: int = 255,
) -> list[Sample]:
    """Every sample of one collect step, before any cap: labeled images first, then the unlabeled weak view (sampling).

    Args:
        features: Student features (Bl, D, h, w) of the labeled images.
        logits: Student logits (Bl, C, h, w).
        labels: Ground truth (Bl, H, W).
        weak_features: Teacher features (Bu, D, h, w) of the weak view.
        weak_logits: Teacher logits (Bu, C, h, w).
        threshold: Confidence of the high group.
        floor: Labeled pixels at or under it are dropped.
        class_thresholds: Per class, instead of `threshold` for labeled pixels, and without floor.
        ignore_index: The label of pixels that do not count.
    """
    samples = []
    small_labels = downsample_labels(labels, *logits.shape[2:])
    probability = softmax(logits)
    for b, y, x in np.ndindex(*small_labels.shape):
        label = int(small_labels[b, y, x])
        confidence, predicted = probability[b, :, y, x].max(dim=0)
        if label == ignore_index or int(predicted) != label:
            continue
        if confidence >= (threshold if class_thresholds is None else class_thresholds[label]):
            samples.append(Sample(features[b, :, y, x], label, HIGH, float(confidence)))
        elif class_thresholds is not None or confidence > floor:
            samples.append(Sample(features[b, :, y, x], label, LOW, float(confidence)))

    if weak_features is not None and weak_logits is not None:
        probability = softmax(weak_logits)
        for b, y, x in np.ndindex(len(probability), *probability.shape[2:]):
            confidence, predicted = probability[b, :, y, x].max(dim=0)
            if confidence >= threshold:
                samples.append(Sample(weak_features[b, :, y, x], int(predicted), HIGH, float(confidence)))
    return samples


def collect_fallback(
    features: Tensor, logits: Tensor, labels: Tensor, ignore_index: int = 255
) -> list[tuple[Tensor, int, float]]:
    """Every labeled pixel, right or wrong, as (feature, class, probability of its true class) (rare classes)."""
    small_labels = downsample_labels(labels, *logits.shape[2:])
    probability = softmax(logits)
    rows = []
    for b, y, x in np.ndindex(*small_labels.shape):
        label = int(small_labels[b, y, x])
        if label != ignore_index:
            rows.append((features[b, :, y, x], label, float(probability[b, label, y, x])))
    return rows


def softmax(logits: Tensor) -> Tensor:
    """Class probabilities of logits (B, C, h, w), in float32 or the logits' better precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)


def balance_weights(classes: Sequence[int], exponent: float) -> list[float]:
    """Relative weight of each candidate in the draw: 1 / (candidates of its class) ** exponent (class balance)."""
    return [1 / list(classes).count(c) ** exponent for c in classes]


def update_class_confidence(
    average: Sequence[float],
    logits: Tensor,
    labels: Tensor,
    momentum: float = 0.999,
    ignore_index: int = 255,
    align_corners: bool = True,
) -> list[float]:
    """The averages e_c (C,) after one labeled step (class-adaptive threshold).

    Per class in the labels (B, H, W), the mean over all its pixels of its probability; the logits (B, C, h, w) are
    upsampled before the softmax.
    """
    height, width = labels.shape[1:]
    probability = upsample(logits.double(), height, width, align_corners).softmax(dim=1)
    after = list(average)
    for c in range(len(after)):
        pixels = labels == c
        if c != ignore_index and pixels.any():
            after[c] = momentum * after[c] + (1 - momentum) * float(probability[:, c][pixels].mean())
    return after


def clip_thresholds(
    average: Sequence[float], low: float, high: float, fixed: float = 0.8, fixed_classes: Sequence[int] = ()
) -> list[float]:
    """Per-class thresholds t_c (C,): the clipped averages, but `fixed` for the listed classes."""
    return [fixed if c in fixed_classes else min(max(e, low), high) for c, e in enumerate(average)]


# --- Queues: rows are (n, D + 1), the confidence last -----------------------------------------------------------------


def fifo(rows: Tensor, capacity: int) -> Tensor:
    """What a queue holds after these rows (n, D + 1) came in this order: the newest, oldest first."""
    return rows[max(len(rows) - capacity, 0) :]


def best_kept(rows: Tensor, capacity: int) -> Tensor:
    """What a rare-class queue holds after these rows (n, D + 1): the most confident, in ascending order.

    Of equally confident rows the newer stay.
    """
    return fifo(rows[rows[:, -1].argsort(stable=True)], capacity)


def fill_rare_classes(high: Tensor, low: Tensor, fallback: Tensor, queue_size: int) -> tuple[Tensor, Tensor]:
    """One class's (high, low) rows to cluster, refilled from its rare-class queue, least confident first.

    Only high poor: the most confident fallback rows replace it. Both poor: the fallback's halves replace both.
    Only low poor, or nothing to fall back on: unchanged.
    """
    if len(high) >= RARE_ROWS or len(fallback) == 0:
        return high, low
    if len(low) >= RARE_ROWS:
        return fifo(fallback, queue_size), low
    half = len(fallback) // 2
    return fallback[half:], fallback[:half]


# --- Split ------------------------------------------------------------------------------------------------------------


def dispersion(features: Tensor, kind: Dispersion = "cosine") -> float:
    """How scattered features (n, D) are about their mean; nan for none. `cosine`: low = scattered, others: high."""
    if len(features) == 0:
        return math.nan
    features = features.double()
    mean = features.mean(dim=0)
    if kind == "cosine":
        return sum(float(F.cosine_similarity(f, mean, dim=0)) for f in features) / len(features)
    if kind == "l2_normalized":
        features, mean = F.normalize(features, dim=1), F.normalize(mean, dim=0)
    return sum(float((f - mean).norm()) for f in features) / len(features)


def split_counts(
    dispersions: Sequence[float], kind: Dispersion, base: int, fraction: float, increment: int = 1
) -> list[int]:
    """Prototypes per class (C,) of one group: `base`, and `increment` more for the most scattered classes (split).

    `fraction` of all classes are chosen (banker's rounding, at least one; 0 = none), a nan never, ties all.
    """
    scatter = [-d if kind == "cosine" else d for d in dispersions]
    ranking = sorted((s for s in scatter if not math.isnan(s)), reverse=True)
    if fraction == 0 or not ranking:
        return [base] * len(scatter)
    chosen = min(max(round(fraction * len(scatter)), 1), len(ranking))
    threshold = ranking[chosen - 1]
    return [base + increment if s >= threshold else base for s in scatter]


# --- Clustering -------------------------------------------------------------------------------------------------------


def nearest_centroid(features: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index (n,) of the nearest of the centroids (K, D), and the squared distance (n,) to it."""
    distances = np.stack([((features - centroid) ** 2).sum(axis=1) for centroid in centroids], axis=1)
    return distances.argmin(axis=1), distances.min(axis=1)


def kmeans_inertia(features: np.ndarray, centroids: np.ndarray) -> float:
    """Sum over features (n, D) of the squared distance to the nearest of the centroids (K, D)."""
    return float(nearest_centroid(features.astype(np.float64), centroids.astype(np.float64))[1].sum())


def best_kmeans(features: np.ndarray, k: int, restarts: int = 10, seed: int = 0) -> tuple[np.ndarray, float]:
    """Centroids (<= k, D) and inertia of the best of several k-means++ seeded Lloyd runs on features (n, D).

    There are fewer than k centroids only where there are fewer than k distinct features.
    """
    rng = np.random.default_rng(seed)
    features = features.astype(np.float64)
    runs = [_lloyd(features, _plus_plus(features, k, rng)) for _ in range(restarts)]
    best = min(runs, key=lambda centroids: kmeans_inertia(features, centroids))
    return best, kmeans_inertia(features, best)


def _plus_plus(features: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    centroids = features[[rng.integers(len(features))]]
    while len(centroids) < k:
        distance = nearest_centroid(features, centroids)[1]
        if distance.sum() == 0:
            break
        centroids = np.vstack([centroids, features[rng.choice(len(features), p=distance / distance.sum())]])
    return centroids


def _lloyd(features: np.ndarray, centroids: np.ndarray, max_iterations: int = 300) -> np.ndarray:
    assignment = np.full(len(features), -1)
    for _ in range(max_iterations):
        nearest, _ = nearest_centroid(features, centroids)
        if (nearest == assignment).all():
            break
        assignment = nearest
        for c in range(len(centroids)):
            if (assignment == c).any():
                centroids[c] = features[assignment == c].mean(axis=0)
    return centroids


def confidence_centroid(features: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """A cluster's mean feature (D,), each of its features (n, D) weighted by its confidence (n,), not all of them 0."""
    weights = confidence.astype(np.float64)
    centroid = np.zeros(features.shape[1])
    for feature, weight in zip(features, weights, strict=True):
        centroid += weight / weights.sum() * feature
    return centroid
