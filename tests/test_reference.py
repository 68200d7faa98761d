"""The reference against the golden records, and by hand where they are silent."""

from __future__ import annotations

import math

import golden_records as golden
import numpy as np
import pytest
import reference
import torch
from reference import HIGH, LOW, Sample
from torch.testing import assert_close

NAN = math.nan
GROUPS = (HIGH, LOW)
DISPERSIONS: dict[str, reference.Dispersion] = {"cos_sim": "cosine", "l2": "l2", "l2_norm": "l2_normalized"}


def rows(*confidence: float) -> torch.Tensor:
    """Queue rows (n, 2) whose feature tells their position."""
    return torch.tensor([[float(i), p] for i, p in enumerate(confidence)]).reshape(-1, 2)


# --- Golden: learn ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=golden.LEARN)
def learn_record(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    return golden.load(request.param)


def test_learn_step_is_the_published_one(learn_record):
    record, epoch = learn_record, int(learn_record["iters_per_epoch"])
    prototypes, mask = map(torch.from_numpy, golden.bank(record))
    inputs = ("features_labeled", "labels", "features_unlabeled", "pseudo_labels", "confidence")
    step = reference.learn_step(
        *(torch.from_numpy(record[name]) for name in inputs),
        prototypes,
        mask,
        iteration=int(record["iteration"]),
        ramp_start=5 * epoch,
        total=int(record["epochs"]) * epoch,
        threshold_range=(float(record["pseudo_threshold"]), 0.95),
        grid=int(record["grid_num"]),
        temperature=float(record["temperature"]),
        momentum=float(record["ema_decay"]),
    )
    assert step["threshold_now"] == pytest.approx(float(record["threshold_now"]), rel=0, abs=1e-9)
    assert step["num_pseudo"] == int(record["num_pseudo"])
    for name in ("loss_labeled", "loss_unlabeled", "loss"):
        assert step[name] == pytest.approx(float(record[name]), rel=1e-5), name
    grad = torch.from_numpy(record["grad"]).double()
    assert (step["grad"] - grad).norm() <= 1e-5 * grad.norm()
    after, _ = map(torch.from_numpy, golden.bank(record, "_after"))
    assert_close(step["prototypes_after"], after.double(), rtol=0, atol=1e-5)


# --- Golden: collect --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden.COLLECT)
def test_collect_fills_the_published_queues(name):
    record = golden.load(name)
    assert record["high_threshold"] == record["pseudo_threshold"], "collect_step knows one threshold"
    samples: list[Sample] = []
    for step in range(int(record["steps"])):
        inputs = ("features_labeled", "logits_labeled", "labels", "features_weak", "logits_weak")
        samples += reference.collect_step(
            *(torch.from_numpy(record[f"{key}_{step}"]) for key in inputs),
            threshold=float(record["high_threshold"]),
            floor=float(record["low_threshold"]),
            class_thresholds=record["class_thresholds"].tolist() if "class_thresholds" in record else None,
        )
    for class_id in range(int(record["num_classes"])):
        for group in GROUPS:
            found = [[*s.feature.tolist(), s.confidence] for s in samples if (s.class_id, s.group) == (class_id, group)]
            expected = golden.queue(record, group, class_id)
            assert len(found) == len(expected)
            np.testing.assert_allclose(golden.sorted_rows(np.array(found)), expected, rtol=0, atol=1e-5)


# --- Golden: cluster --------------------------------------------------------------------------------------------------


@pytest.fixture(params=golden.CLUSTER)
def cluster_record(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    return golden.load(request.param)


@pytest.mark.parametrize("published", DISPERSIONS)
@pytest.mark.parametrize("group", GROUPS)
def test_split_is_the_published_one(cluster_record, published, group):
    side, kind = ("high", "low")[group], DISPERSIONS[published]
    queues = [golden.queue(cluster_record, group, c)[:, :-1] for c in range(int(cluster_record["num_classes"]))]
    dispersions = [reference.dispersion(torch.from_numpy(features), kind) for features in queues]
    counts = reference.split_counts(
        dispersions,
        kind,
        base=int(cluster_record[side]),
        fraction=float(cluster_record["add_proportion"]),
        increment=int(cluster_record["add_num"]),
    )
    assert counts == cluster_record[f"num_{side}_{published}"].tolist()


@pytest.mark.parametrize("group", GROUPS)
def test_kmeans_matches_or_beats_the_published_inertia(cluster_record, group):
    side = ("high", "low")[group]
    for c in range(int(cluster_record["num_classes"])):
        features = golden.queue(cluster_record, group, c)[:, :-1]
        k = int(cluster_record[f"num_{side}_cos_sim"][c])
        centroids, inertia = reference.best_kmeans(features, k)
        assert centroids.shape == (k, features.shape[1])
        assert inertia <= 1.01 * float(cluster_record[f"inertia_{side}_{c}"]), f"class {c}"


# --- By hand: points --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "grid", "axis"),
    [
        (9, 4, [0, 2, 4, 6, 8]),
        (10, 4, [0, 2, 4, 6, 9]),
        (5, 4, [0, 1, 2, 3, 4]),
        (4, 4, [0, 1, 2, 3]),
        (1, 4, [0]),
    ],
)
def test_grid_covers_an_axis_without_duplicates(size, grid, axis):
    assert reference.grid_points(size, 1, grid) == [(y, 0) for y in axis]
    assert reference.grid_points(1, size, grid) == [(0, x) for x in axis]


def test_pseudo_threshold_ramps_from_low_to_high():
    assert reference.pseudo_threshold(50, 50, 100) == pytest.approx(0.8)
    assert reference.pseudo_threshold(75, 50, 100) == pytest.approx(0.875)
    assert reference.pseudo_threshold(100, 50, 100) == pytest.approx(0.95)
    assert reference.pseudo_threshold(40, 50, 100) == pytest.approx(0.77), "not clipped before the ramp"


# --- By hand: loss and update -----------------------------------------------------------------------------------------

# Class 0 lies along x (high) and -x (low), class 1 along y, class 2 has no prototype.
AXES = torch.zeros(3, 2, 1, 2)
AXES[0, HIGH, 0], AXES[0, LOW, 0], AXES[1, HIGH, 0] = torch.tensor([[1.0, 0], [-1, 0], [0, 2]])
AXES[1, LOW], AXES[2] = NAN, NAN
AXES_MASK = ~AXES.isnan().any(dim=-1)


def test_class_similarity_is_the_best_prototypes():
    similarity = reference.class_similarity(torch.tensor([[-3.0, 4.0]]), AXES, AXES_MASK)
    assert_close(similarity, torch.tensor([[0.6, 0.8, -math.inf]]))


def test_loss_counts_misclassified_points_by_their_weight_and_skips_the_rest():
    features = torch.tensor([[2.0, 0], [0, 3], [1, 1], [1, 1]])
    targets = torch.tensor([0, 0, 2, 255])  # right; wrong; no prototype; ignored
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    for weight, expected in [(1.0, (right + wrong) / 2), (3.0, (right + 3 * wrong) / 4), (0.0, right)]:
        loss = reference.contrastive_loss(features, targets, AXES, AXES_MASK, 1.0, misclassified_weight=weight)
        assert loss.item() == pytest.approx(expected)


def test_loss_over_no_point_is_zero_with_a_gradient():
    features = torch.ones(2, 2, requires_grad=True)
    loss = reference.contrastive_loss(features, torch.tensor([2, 255]), AXES, AXES_MASK, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert_close(features.grad, torch.zeros(2, 2))


def test_update_moves_each_prototype_to_the_weighted_mean_of_its_points():
    # Class 0: two points nearest to +x, the second of them misclassified as class 1; none is nearest to -x.
    features = torch.tensor([[4.0, 0], [1, 2], [9, 9], [9, 9]])
    after = reference.ema_update(AXES, AXES_MASK, features, torch.tensor([0, 0, 2, 255]), 0.9, misclassified_weight=3.0)
    expected = AXES.clone()
    expected[0, HIGH, 0] = torch.tensor([0.9 * 1 + 0.1 * (4 + 3 * 1) / 4, 0.1 * (3 * 2) / 4])
    assert_close(after, expected, equal_nan=True)


def test_update_ignores_points_of_weight_zero():
    after = reference.ema_update(AXES, AXES_MASK, torch.tensor([[1.0, 2]]), torch.tensor([0]), 0.9, 0.0)
    assert_close(after, AXES, equal_nan=True)


def test_an_ignored_pseudo_label_is_no_point():
    features = torch.rand(1, 2, 2, 2)
    step = reference.learn_step(
        features,
        torch.full((1, 2, 2), 255),
        features,
        torch.tensor([[[0, 255], [255, 1]]]),
        torch.tensor([[[0.9, 0.99], [0.99, 0.1]]]),
        AXES,
        AXES_MASK,
        iteration=0,
        ramp_start=0,
        total=10,
    )
    assert step["num_pseudo"] == 1
    assert step["loss_labeled"] == 0
    assert step["loss"] == step["loss_unlabeled"] > 0


# --- By hand: sampling ------------------------------------------------------------------------------------------------


def test_collect_at_the_thresholds():
    # One row of pixels whose float32 probability of class 0 is exactly 0.5 or very nearly 1.
    logits = torch.tensor([[0.0, 0, 0, 50], [0, 0, 0, 0]]).reshape(1, 2, 1, 4)
    labels = torch.tensor([[[0, 1, 255, 0]]])
    features = torch.arange(4.0).reshape(1, 1, 1, 4)

    def collect(**options):
        samples = reference.collect_step(features, logits, labels, **options)
        return [(s.feature.item(), s.class_id, s.group) for s in samples]

    assert collect(threshold=0.5) == [(0, 0, HIGH), (3, 0, HIGH)], "at the threshold is high"
    assert collect(threshold=0.8) == [(0, 0, LOW), (3, 0, HIGH)]
    assert collect(threshold=0.8, floor=0.5) == [(3, 0, HIGH)], "at the floor is dropped"
    assert collect(floor=0.5, class_thresholds=[0.6, 0.6]) == [(0, 0, LOW), (3, 0, HIGH)], "no floor"


def test_collect_takes_unlabeled_pixels_as_high_only():
    logits = torch.tensor([[0.0, 50], [1, 0]]).reshape(1, 2, 1, 2)
    features = torch.arange(2.0).reshape(1, 1, 1, 2)
    ignored = torch.full((1, 1, 2), 255)
    samples = reference.collect_step(features, logits, ignored, features, logits, class_thresholds=[0.0, 0.0])
    assert [(s.feature.item(), s.class_id, s.group) for s in samples] == [(1, 0, HIGH)], "class thresholds do not apply"


def test_fallback_takes_wrong_pixels_with_the_probability_of_the_truth():
    logits = torch.tensor([[0.0, 0, 5], [math.log(3), 0, 0]]).reshape(1, 2, 1, 3)
    fallback = reference.collect_fallback(torch.zeros(1, 1, 1, 3), logits, torch.tensor([[[0, 1, 255]]]))
    assert [(c, pytest.approx(p)) for _, c, p in fallback] == [(0, 0.25), (1, 0.5)]


def test_class_balance_gives_each_candidate_its_classes_weight():
    assert reference.balance_weights([7, 3, 7, 7, 7], 0.5) == [0.5, 1, 0.5, 0.5, 0.5]


def test_class_confidence_averages_pixels_of_all_images_at_image_resolution():
    # Upsampled with aligned corners, the middle pixel's logits are the mean of its neighbours'.
    logits = torch.tensor([[[[0.0, 4.0]], [[0, 0]]], [[[0, 0]], [[0, 0]]]])
    labels = torch.tensor([[[0, 0, 255]], [[255, 0, 255]]])
    mean = (0.5 + 1 / (1 + math.exp(-2)) + 0.5) / 3
    assert reference.update_class_confidence([0.8, 0.7], logits, labels, 0.9) == pytest.approx([0.72 + 0.1 * mean, 0.7])


def test_thresholds_are_clipped_but_for_fixed_classes():
    thresholds = reference.clip_thresholds([0.2, 0.75, 0.99, 0.2], 0.6, 0.9, fixed=0.8, fixed_classes=(3,))
    assert thresholds == [0.6, 0.75, 0.9, 0.8]


# --- By hand: queues --------------------------------------------------------------------------------------------------


def test_fifo_keeps_the_newest():
    assert reference.fifo(rows(0.1, 0.2, 0.3), 2)[:, 0].tolist() == [1, 2]
    assert reference.fifo(rows(0.1), 2)[:, 0].tolist() == [0]
    assert len(reference.fifo(rows(0.1), 0)) == 0


def test_best_kept_sorts_and_keeps_the_most_confident():
    assert reference.best_kept(rows(0.9, 0.1, 0.5, 0.7), 3)[:, 0].tolist() == [2, 3, 0]
    assert reference.best_kept(rows(0.5, 0.5, 0.5), 2)[:, 0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("num_high", "num_low", "num_fallback", "expected_high", "expected_low"),
    [
        (10, 10, 8, "high", "low"),
        (10, 9, 8, "high", "low"),
        (9, 10, 8, [4, 5, 6, 7], "low"),
        (9, 10, 3, [0, 1, 2], "low"),
        (9, 9, 7, [3, 4, 5, 6], [0, 1, 2]),
        (0, 0, 1, [0], []),
        (5, 5, 0, "high", "low"),
    ],
)
def test_rare_classes_are_filled_from_the_fallback(num_high, num_low, num_fallback, expected_high, expected_low):
    high, low, fallback = rows(*[0.9] * num_high), rows(*[0.3] * num_low), rows(*[0.5] * num_fallback)
    filled = reference.fill_rare_classes(high, low, fallback, queue_size=4)
    for found, expected in zip(filled, (expected_high, expected_low), strict=True):
        if isinstance(expected, str):
            assert found is {"high": high, "low": low}[expected]
        else:
            assert_close(found, fallback[expected])


# --- By hand: split and clusters --------------------------------------------------------------------------------------


def test_dispersion():
    features = torch.tensor([[1.0, 0], [0, 1]])
    assert reference.dispersion(features, "cosine") == pytest.approx(math.sqrt(0.5))
    assert reference.dispersion(2 * features, "l2") == pytest.approx(math.sqrt(2))
    assert reference.dispersion(2 * features, "l2_normalized") == pytest.approx(math.sqrt(2 - math.sqrt(2)))
    assert math.isnan(reference.dispersion(features[:0], "cosine"))


@pytest.mark.parametrize(
    ("kind", "dispersions", "fraction", "counts"),
    [
        ("l2", [1, 3, 2, 0], 0.0, [2, 2, 2, 2]),
        ("l2", [1, 3, 2, 0], 0.01, [2, 3, 2, 2]),
        ("l2", [1, 3, 2, 0, 0], 0.5, [2, 3, 3, 2, 2]),  # round(2.5) = 2
        ("l2", [1, 3, 3, 0], 0.25, [2, 3, 3, 2]),
        ("cosine", [0.9, 0.2, 0.3, 0.9], 0.5, [2, 3, 3, 2]),
        ("cosine", [NAN, 0.2, 0.3, NAN], 0.25, [2, 3, 2, 2]),
        ("l2", [NAN, 1, NAN, NAN], 0.5, [2, 3, 2, 2]),
        ("l2", [NAN, NAN], 0.5, [2, 2]),
    ],
)
def test_split_counts(kind, dispersions, fraction, counts):
    assert reference.split_counts(dispersions, kind, base=2, fraction=fraction) == counts


def test_kmeans_finds_the_obvious_clusters():
    features = np.array([[0.0], [2], [100], [104]])
    centroids, inertia = reference.best_kmeans(features, 2)
    assert sorted(centroids[:, 0]) == [1, 102]
    assert inertia == reference.kmeans_inertia(features, centroids) == 10


def test_one_cluster_is_the_mean():
    features = np.random.default_rng(0).normal(size=(50, 3))
    before = features.copy()
    centroids, inertia = reference.best_kmeans(features, 1)
    np.testing.assert_allclose(centroids, before.mean(axis=0)[None])
    assert inertia == pytest.approx(before.var(axis=0).sum() * 50)
    np.testing.assert_array_equal(features, before)


def test_kmeans_has_no_more_centroids_than_distinct_features():
    centroids, inertia = reference.best_kmeans(np.array([[1.0], [1], [5]]), 4)
    assert sorted(centroids[:, 0]) == [1, 5]
    assert inertia == 0


def test_confidence_centroid_weights_features():
    centroid = reference.confidence_centroid(np.array([[0.0, 1], [4, 1]]), np.array([0.25, 0.75]))
    np.testing.assert_allclose(centroid, [3, 1])
