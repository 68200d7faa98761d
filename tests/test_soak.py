"""Thousands of steps: constant memory, prototypes on the data's scale, ranks that do not drift apart."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import centers, fresh, head, labeled, same, state, unlabeled
from ranks import on_ranks

from brpg_lib import LabeledBatch, UnlabeledBatch

STEPS = 5000
MAX_GROWTH = 3 * 2**20
"""Bytes of resident memory: the allocator's noise, 600 bytes per step."""


def batches(step: int, index: int = 0) -> tuple[LabeledBatch, UnlabeledBatch | None]:
    """Images of any number, size and classes; now and then broken features, nothing labeled, none unlabeled."""
    chance = random.Random(7 * step + index)
    seed, side = chance.randrange(50), chance.choice([9, 13, 17])
    options: dict[str, Any] = {
        "num_images": chance.randint(1, 3),
        "image": (side, 2 * side - 1),
        "size": ((side + 1) // 2, side),
        "absent": chance.sample(range(3), chance.choice([0, 0, 1])),
    }
    first = labeled(seed, ignored=chance.choice([0.0, 0.1, 1.0]), **options)
    second = unlabeled(seed, **options) if chance.random() < 0.9 else None
    if chance.random() < 0.05:
        broken = first.features.detach().clone()
        broken[0, :, 0] = chance.choice([float("nan"), float("inf"), 1e30, 0.0])
        first = fresh(first, features=broken)
    return first, second


def resident() -> int:
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def soak(index: int, ranks: int, folder: Path) -> None:
    module = head(total=2 * STEPS)
    memory, drifts = [], []
    for step in range(STEPS):
        out = module(*batches(step, index))
        assert out.loss.isfinite()
        if out.loss.requires_grad:
            out.loss.backward()
        if (step + 1) % (STEPS // 5) == 0:
            memory.append(resident())
            drifts.append(module.bank.prototypes.clone())
    torch.save({"state": state(module), "memory": memory, "prototypes": drifts}, folder / f"{index}.pt")


def assert_sound(found: dict[str, Any]) -> None:
    middle = centers().norm(dim=1)
    for prototypes in found["prototypes"]:
        assert prototypes.isfinite().all()
        lengths = prototypes.norm(dim=-1)[found["state"]["bank.mask"]]
        assert lengths.min() > middle.min() / 3
        assert lengths.max() < 3 * middle.max()
    first, *others = found["memory"]
    assert max(others) - first < MAX_GROWTH, found["memory"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to tell the memory")
@pytest.mark.parametrize("ranks", [1, 2])
def test_thousands_of_steps(tmp_path: Path, ranks: int) -> None:
    first, *others = on_ranks(soak, ranks, tmp_path, seconds=540)
    assert first["state"]["bank.mask"].any(dim=(1, 2)).all()
    assert_sound(first)
    for other in others:
        assert_sound(other)
        assert same(first["state"], other["state"])
        assert all(torch.equal(one, two) for one, two in zip(first["prototypes"], other["prototypes"], strict=True))
    growth = [max(found["memory"]) - found["memory"][0] for found in (first, *others)]
    print(f"{STEPS} steps on {ranks} ranks: memory grew by {growth} bytes after the first fifth", first["memory"])
