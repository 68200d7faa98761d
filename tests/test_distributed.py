"""Two processes against each other and against one that sees all images."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from builders import fresh, head, labeled, same, state, unlabeled
from torch import Tensor
from torch.testing import assert_close

from brpg_lib import FeatureQueue, LabeledBatch, PrototypeHead, UnlabeledBatch
from brpg_lib.distributed import all_reduce_sum, gather_rows, rank, world_size

RANKS, STEPS = 2, 9


def worker(index: int, job: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=index,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        job(index, folder)
    finally:
        dist.destroy_process_group()


def on_all_ranks(job: Callable[[int, Path], None], folder: Path) -> list[dict[str, Any]]:
    """Run a job on two ranks; what each one saved."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.start_processes(worker, args=(job, folder), nprocs=RANKS, start_method="spawn")
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(RANKS)]


def images(step: int, index: int) -> tuple[LabeledBatch, UnlabeledBatch]:
    """Rank 0 has one image of each kind, rank 1 two; late in the training, rank 1 has nothing to say."""
    count, seed = index + 1, 100 * step + 10 * index
    first, second = labeled(seed, num_images=count), unlabeled(seed, num_images=count, weak_images=count)
    if index == 1 and step in (2, 6):
        first = fresh(first, labels=torch.full_like(first.labels, 255))
        second = fresh(second, confidence=0 * second.confidence, weak_logits=0 * second.weak_logits)
    return first, second


def both(step: int) -> tuple[LabeledBatch, UnlabeledBatch]:
    """The images of both ranks as one batch."""

    def joined(one: Any, two: Any) -> dict[str, Tensor]:
        given = [name for name, value in vars(one).items() if value is not None]
        return {name: torch.cat((getattr(one, name), getattr(two, name))).detach() for name in given}

    parts = [images(step, index) for index in range(RANKS)]
    first, second = (joined(*pair) for pair in zip(*parts, strict=True))
    return fresh(LabeledBatch(**first)), fresh(UnlabeledBatch(**second))


def options(**more: Any) -> dict[str, Any]:
    return {"unlabeled_samples_per_image": 10**6, "queue_size": 2000} | more


def training(index: int, folder: Path) -> None:
    for name, settings in SETTINGS.items():
        module = head(**options(**settings))
        states = {}
        for step in range(STEPS):
            out = module(*images(step, index))
            assert out.loss.isfinite()
            states[step] = state(module)
        torch.save(states, folder / f"{name}-{index}.pt")
    torch.save({}, folder / f"{index}.pt")


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "adaptive": {"class_adaptive": (0.1, 0.95), "adaptive_momentum": 0.9, "recluster_every": 2},
    "capped": {"samples_per_image": 20, "unlabeled_samples_per_image": 10, "recluster_every": 3, "queue_size": 50},
    "fallback": {"rare_class_fallback": True, "misclassified_weight": 2.0},
    "pooled": {"separate_confidence": False},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[int, dict[str, Any]]]]:
    """For each setting, the state of each rank after each step."""
    folder = tmp_path_factory.mktemp("ranks")
    on_all_ranks(training, folder)
    return {
        name: [torch.load(folder / f"{name}-{index}.pt", weights_only=True) for index in range(RANKS)]
        for name in SETTINGS
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_stay_equal(trained, name: str) -> None:
    """Bit for bit, in all that decides: queues, thresholds, prototypes, the phase."""
    one, two = trained[name]
    for step in range(STEPS):
        first, second = (dict(states[step]) for states in (one, two))
        for own in (first, second):
            own.pop("dropped")  # each rank counts its own
        assert same(first, second), step
    assert one[STEPS - 1]["bank.mask"].any()


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "capped"])
def test_equal_to_one_process_with_all_images(trained, name: str) -> None:
    """Where no cap binds, only the order of rows and sums differs; clustering depends on it and is taken over."""
    module = head(**options(**SETTINGS[name]))
    period = module.schedule.recluster_every
    for step in range(STEPS):
        module(*both(step))
        states = trained[name][0][step]
        assert torch.equal(module.queue.rows, states["queue.rows"])
        assert torch.equal(module.bank.mask, states["bank.mask"])
        assert_close(module.sampler.thresholds, states["sampler.thresholds"], atol=1e-5, rtol=0)
        assert_close(sorted_rows(module.queue), rows_of(states), atol=1e-5, rtol=0)
        clustered = step >= 4 and (step == 4 or (period is not None and step % period == 0))
        if clustered:
            module.bank.set(states["bank.prototypes"], states["bank.mask"])
        assert_close(module.bank.prototypes, states["bank.prototypes"], atol=1e-5, rtol=1e-5)


def sorted_rows(queue: FeatureQueue) -> Tensor:
    return rows_of({"queue.features": queue.features, "queue.confidence": queue.confidence})


def rows_of(states: dict[str, Tensor]) -> Tensor:
    """All rows with a confidence, in an order that does not depend on when they came."""
    features, confidence = states["queue.features"], states["queue.confidence"]
    rows = torch.cat((features, confidence[..., None]), dim=3)[confidence > 0]
    return rows[rows[:, 0].argsort()]


def update(index: int, folder: Path) -> None:
    module, features, classes = bank_case()
    part = slice(0, 11) if index == 0 else slice(11, None)
    module.bank.update(features[part], classes[part])
    empty = torch.cat(gather_rows(torch.zeros(0, 3)))
    uneven = torch.cat(gather_rows(torch.full((2 * index, 3), float(index))))
    numbers = torch.cat(gather_rows(torch.arange(index + 1)))
    total = all_reduce_sum(torch.tensor([1.0 + index]))
    result = {"bank": module.bank.prototypes, "empty": empty, "uneven": uneven, "numbers": numbers, "total": total}
    torch.save(result | {"world": torch.tensor([world_size(), rank()])}, folder / f"{index}.pt")


def bank_case() -> tuple[PrototypeHead, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    module = head(momentum=0.5)
    shape = module.bank.prototypes.shape
    module.bank.set(torch.randn(shape, generator=random), torch.rand(shape[:3], generator=random) < 0.7)
    return module, torch.randn(40, 5, generator=random), torch.randint(3, (40,), generator=random)


def test_collectives(tmp_path: Path) -> None:
    one, two = on_all_ranks(update, tmp_path)
    world = one.pop("world").tolist(), two.pop("world").tolist()
    assert world == ([2, 0], [2, 1])
    assert same(one, two)
    module, features, classes = bank_case()
    module.bank.update(features, classes)
    assert_close(one["bank"], module.bank.prototypes, atol=1e-5, rtol=1e-5)
    assert one["empty"].shape == (0, 3)
    assert one["uneven"].tolist() == [[1.0] * 3] * 2
    assert one["numbers"].tolist() == [0, 0, 1]
    assert one["total"].item() == 3.0


def test_a_single_process_needs_no_setup() -> None:
    tensor = torch.randn(4, 2)
    assert gather_rows(tensor) == [tensor]
    assert all_reduce_sum(tensor) is tensor
    assert (world_size(), rank()) == (1, 0)
