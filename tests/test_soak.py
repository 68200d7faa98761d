"""Thousands of steps: constant memory, prototypes on the data's scale, ranks that do not drift apart."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import centers, fresh, head, labeled, same, state, unlabeled
from forms import FORMS, Averaged, UnderDefault
from ranks import on_ranks
from torch import nn

from brpg_lib import LabeledBatch, PrototypeHead, UnlabeledBatch

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


KINDS: dict[str, Callable[[], nn.Module]] = {
    "averaged": lambda: Averaged(head()),
    "bfloat16": lambda: UnderDefault(head, torch.bfloat16),
    "float64": lambda: UnderDefault(head, torch.float64),
    **{name: partial(head, num_classes) for name, (num_classes, _) in FORMS.items()},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_steps_otherwise(kind: str) -> None:
    """Other forms of batches, and circumstances: finite, with prototypes of all classes, on the data's scale."""
    module = KINDS[kind]()
    num_classes, form = FORMS.get(kind, (3, None))
    memory = []
    for step in range(2000):
        chance = random.Random(step)
        options: dict[str, Any] = {
            "num_classes": num_classes,
            "absent": chance.sample(range(num_classes), chance.choice([0, 0, 1])),
        }
        pair: Any = labeled(step % 50, **options), unlabeled(step % 50, **options) if chance.random() < 0.9 else None
        out = module(*(pair if form is None else form(*pair)))
        assert out.loss.isfinite()
        out.loss.backward()
        if (step + 1) % 400 == 0:
            memory.append(resident())
    found = next(part for part in module.modules() if isinstance(part, PrototypeHead))
    assert found.iteration == 2000
    assert found.bank.present == [True] * num_classes
    lengths = found.bank.prototypes.norm(dim=-1)[found.bank.mask]
    assert lengths.max() < 3 * centers(num_classes).norm(dim=1).max()
    assert memory[-1] - memory[1] < 4 * MAX_GROWTH, memory


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
