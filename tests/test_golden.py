"""The public API against the golden records of the published implementation."""

from __future__ import annotations

import golden_records
import numpy as np
import pytest
import torch

from brpg_lib import (
    AdaptiveSplitter,
    BRPGConfig,
    FeatureQueue,
    LabeledBatch,
    OnlineClusterer,
    Phase,
    PrototypeHead,
    Samples,
    Schedule,
    UnlabeledBatch,
)

pytestmark = pytest.mark.usefixtures("everywhere")


def tensors(record: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in record.items() if value.dtype.kind in "fiu"}


@pytest.mark.parametrize("name", golden_records.LEARN)
def test_learn_step(name: str) -> None:
    record = golden_records.load(name)
    data = tensors(record)
    prototypes, mask = map(torch.from_numpy, golden_records.bank(record))
    epoch = int(record["iters_per_epoch"])
    schedule = Schedule.from_epochs(
        warmup=1,
        collect=1,
        total=int(record["epochs"]),
        iters_per_epoch=epoch,
        ramp_start=5,
        extrapolate_threshold=True,
    )
    config = BRPGConfig(
        num_prototypes=(prototypes.shape[2],) * 2,
        split_fraction=0.0,
        grid_size=int(record["grid_num"]),
        unlabeled_samples_per_image=10**6,
        temperature=float(record["temperature"]),
        momentum=float(record["ema_decay"]),
    )
    head = PrototypeHead(*prototypes.shape[::3], schedule, config)
    head.bank.set(prototypes, mask)
    labeled = data["features_labeled"].requires_grad_()
    unlabeled = data["features_unlabeled"].requires_grad_()
    iteration = int(record["iteration"])
    out = head(
        LabeledBatch(features=labeled, logits=None, labels=data["labels"]),
        UnlabeledBatch(features=unlabeled, pseudo_labels=data["pseudo_labels"], confidence=data["confidence"]),
        iteration=iteration,
    )
    out.loss.backward()

    assert out.phase is Phase.LEARN
    assert schedule.pseudo_threshold(iteration) == pytest.approx(float(record["threshold_now"]), abs=1e-9)
    assert int(out.metrics["points_unlabeled"]) == int(record["num_pseudo"])
    for value, field in (
        (out.loss_labeled, "loss_labeled"),
        (out.loss_unlabeled, "loss_unlabeled"),
        (out.loss, "loss"),
    ):
        assert value.item() == pytest.approx(float(record[field]), rel=1e-5)
    gradient = torch.cat((labeled.grad, unlabeled.grad))
    assert (gradient - data["grad"]).norm() <= 1e-5 * data["grad"].norm()
    expected, _ = golden_records.bank(record, "_after")
    np.testing.assert_allclose(head.bank.prototypes.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", golden_records.COLLECT)
def test_collect_steps(name: str) -> None:
    record = golden_records.load(name)
    data = tensors(record)
    classes = int(record["num_classes"])
    steps = int(record["steps"])
    config = BRPGConfig(
        confidence_threshold=float(record["high_threshold"]),
        confidence_floor=float(record["low_threshold"]),
        class_adaptive=(0.0, 1.0) if "class_thresholds" in record else None,
        adaptive_momentum=1.0,  # the record gives the thresholds in force
    )
    head = PrototypeHead(classes, 256, Schedule(warmup=0, collect=steps, total=100), config)
    if "class_thresholds" in record:
        head.sampler.thresholds.copy_(data["class_thresholds"])
    for step in range(steps):
        features, weak = data[f"features_labeled_{step}"], data[f"features_weak_{step}"]
        shape = data[f"labels_{step}"].shape
        out = head(
            LabeledBatch(features=features, logits=data[f"logits_labeled_{step}"], labels=data[f"labels_{step}"]),
            UnlabeledBatch(
                features=torch.zeros_like(features),
                pseudo_labels=torch.zeros(shape, dtype=torch.uint8),
                confidence=torch.zeros(shape),
                weak_features=weak,
                weak_logits=data[f"logits_weak_{step}"],
            ),
        )
        assert out.phase is Phase.COLLECT
        assert out.loss.item() == 0.0
    for class_index in range(classes):
        for group in (0, 1):
            vectors, confidence = head.queue.group(class_index, group)
            found = torch.cat((vectors, confidence[:, None]), dim=1).numpy()
            expected = golden_records.queue(record, group, class_index)
            assert found.shape == expected.shape
            np.testing.assert_allclose(golden_records.sorted_rows(found), expected, atol=1e-5)


def filled_queue(record: dict[str, np.ndarray]) -> FeatureQueue:
    classes = int(record["num_classes"])
    queue = FeatureQueue(classes, record["queue_high_0"].shape[1] - 1, queue_size=700)
    for class_index in range(classes):
        for group in (0, 1):
            rows = torch.from_numpy(golden_records.queue(record, group, class_index))
            queue.append(
                Samples(
                    rows[:, :-1],
                    torch.full((len(rows),), class_index),
                    torch.full((len(rows),), group),
                    rows[:, -1],
                    torch.tensor(0),
                )
            )
    return queue


def split(record: dict[str, np.ndarray], queue: FeatureQueue, dispersion: str) -> torch.Tensor:
    splitter = AdaptiveSplitter(
        int(record["num_classes"]),
        num_prototypes=(int(record["high"]), int(record["low"])),
        split_fraction=float(record["add_proportion"]),
        split_increment=int(record["add_num"]),
        dispersion=dispersion,
    )
    return splitter(queue).num_prototypes


@pytest.mark.parametrize("name", golden_records.CLUSTER)
@pytest.mark.parametrize(("dispersion", "suffix"), [("cosine", "cos_sim"), ("l2", "l2"), ("l2_normalized", "l2_norm")])
def test_split(name: str, dispersion: str, suffix: str) -> None:
    record = golden_records.load(name)
    found = split(record, filled_queue(record), dispersion)
    expected = np.stack([record[f"num_high_{suffix}"], record[f"num_low_{suffix}"]], axis=1)
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("name", golden_records.CLUSTER)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clustering(name: str, seed: int) -> None:
    record = golden_records.load(name)
    queue = filled_queue(record)
    wanted = split(record, queue, "cosine")
    prototypes = OnlineClusterer(int(record["num_classes"]), seed=seed)(queue, wanted)
    assert torch.equal(prototypes.mask.sum(2), wanted)
    for class_index in range(int(record["num_classes"])):
        for group, side in enumerate(("high", "low")):
            rows = torch.from_numpy(golden_records.queue(record, group, class_index))[:, :-1]
            centroids = prototypes.vectors[class_index, group][prototypes.mask[class_index, group]]
            inertia = torch.cdist(rows.double(), centroids.double()).square().amin(1).sum().item()
            assert inertia <= 1.01 * float(record[f"inertia_{side}_{class_index}"])
            assert prototypes.inertia[class_index, group].item() == pytest.approx(inertia, rel=1e-4)
