"""A training that is killed at any moment goes on to the result of one that was not."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import same
from interruption import HEADS, STEPS, train
from ranks import context, finish, kill, start
from torch.testing import assert_close

MOMENTS = 20


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a training comes to that nobody disturbs, for each head and number of ranks."""
    known: dict[tuple[str, int], dict[str, Any]] = {}

    def get(name: str, ranks: int) -> dict[str, Any]:
        if (name, ranks) not in known:
            folder = tmp_path_factory.mktemp("whole")
            assert finish(start(train, ranks, folder, name)) == [0] * ranks
            known[name, ranks] = result(folder)
            assert known[name, ranks]["head"]["bank.mask"].any()
        return known[name, ranks]

    return get


def killed(folder: Path, name: str, ranks: int, seed: int) -> int:
    """Train until a moment that the seed chooses, and kill all ranks there; the steps that were done."""
    chance = random.Random(seed)
    progress = context().Value("i", 0)
    processes = start(train, ranks, folder, name, progress)
    step, delay = chance.randrange(STEPS), chance.uniform(0, 0.03)
    deadline = time.monotonic() + 60
    while progress.value < step and any(process.exitcode is None for process in processes):
        assert time.monotonic() < deadline, "the training does not get on"
        assert all(process.exitcode is None or process.exitcode == 0 for process in processes)
        time.sleep(0.0005)
    time.sleep(delay)
    kill(processes)
    return progress.value


def moments(quick: int) -> list[Any]:
    """Seeds of the moments of a kill; the first ones are tried each time, the others are slow."""
    return [pytest.param(seed, marks=[pytest.mark.slow] if seed >= quick else []) for seed in range(MOMENTS)]


@pytest.mark.parametrize("seed", moments(8))
def test_killed_and_gone_on_with(tmp_path: Path, uninterrupted: Any, seed: int) -> None:
    name = list(HEADS)[seed % len(HEADS)]
    whole = uninterrupted(name, 1)
    killed(tmp_path, name, 1, seed)
    assert finish(start(train, 1, tmp_path, name)) == [0]
    assert same(result(tmp_path), whole)


@pytest.mark.parametrize("seed", moments(4))
def test_two_ranks_killed_and_gone_on_with(tmp_path: Path, uninterrupted: Any, seed: int) -> None:
    name = list(HEADS)[seed % len(HEADS)]
    whole = uninterrupted(name, 2)
    killed(tmp_path, name, 2, 100 + seed)
    assert finish(start(train, 2, tmp_path, name)) == [0, 0]
    assert same(result(tmp_path), whole)


@pytest.mark.parametrize(("ranks", "later", "seed"), [(2, 1, 200), (1, 2, 201), (2, 1, 202), (1, 2, 203)])
def test_gone_on_with_by_another_number_of_ranks(
    tmp_path: Path, uninterrupted: Any, ranks: int, later: int, seed: int
) -> None:
    """The same prototypes, up to rounding, where no cap binds."""
    name = "clustered once"
    whole = uninterrupted(name, ranks)
    killed(tmp_path, name, ranks, seed)
    assert finish(start(train, later, tmp_path, name)) == [0] * later
    found = result(tmp_path)
    assert torch.equal(found["head"]["bank.mask"], whole["head"]["bank.mask"])
    assert_close(found["head"]["bank.prototypes"], whole["head"]["bank.prototypes"], atol=1e-5, rtol=1e-5)


def test_killed_again_and_again(tmp_path: Path, uninterrupted: Any) -> None:
    name = "clustered again and again"
    for seed in range(300, 306):
        killed(tmp_path, name, 1, seed)
    assert finish(start(train, 1, tmp_path, name)) == [0]
    assert same(result(tmp_path), uninterrupted(name, 1))
