"""``torch.distributed.checkpoint`` of a model with a head: saved by some processes, loaded by others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from builders import CLASSES, DIM, fresh, head, labeled, same, state, unlabeled
from ranks import on_ranks
from torch import nn

from brpg_lib.distributed import sized_as_saved

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projection = nn.Conv2d(DIM, DIM, 1)
        self.head = head(queue_size=150, recluster_every=4, **options)

    def forward(self, step: int) -> torch.Tensor:
        """The loss of a step that is the same on every rank, and the same for any number of them."""
        first, second = fresh(labeled(10 * step)), fresh(unlabeled(10 * step))
        loss: torch.Tensor = self.head(first, second).loss
        return loss + self.projection(first.features).square().mean()


def train(model: nn.Module, steps: range) -> None:
    for step in steps:
        model.zero_grad()
        model(step).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad


def saving(index: int, ranks: int, folder: Path, steps: int) -> None:
    model = Model()
    wrapped = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
    train(wrapped, range(steps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": model.state_dict(), "steps": steps}, checkpoint_id=folder / "checkpoint")
    torch.save(model.state_dict(), folder / f"{index}.pt")


def loading(index: int, ranks: int, folder: Path, before: int) -> None:
    model = Model()
    train(model, range(before))  # the head that loads may hold something
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sized_as_saved({"model": model.state_dict(), "steps": 0}, folder / "checkpoint")
        dcp.load(found, checkpoint_id=folder / "checkpoint")
    model.load_state_dict(found["model"])
    torch.save(state(model) | {"steps": torch.tensor(found["steps"])}, folder / f"{index}.pt")
    train(model, range(found["steps"], found["steps"] + 2))


@pytest.mark.parametrize(
    ("save", "load", "steps", "before"),
    [(2, 1, 2, 0), (1, 2, 7, 3)],  # while samples are collected; later, into a head that holds something
)
def test_saved_by_some_and_loaded_by_others(save: int, load: int, steps: int, before: int, tmp_path: Path) -> None:
    saved, *others = on_ranks(saving, save, tmp_path, steps)
    for found in on_ranks(loading, load, tmp_path, before):
        assert found.pop("steps") == steps
        assert same(found, saved)
    assert all(same(saved, other) for other in others)


def test_another_head_is_refused_with_what_differs(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(Model().state_dict(), checkpoint_id=tmp_path)
        other = Model(temperature=0.5)
        found = sized_as_saved(other.state_dict(), dcp.FileSystemReader(tmp_path))
        dcp.load(found, checkpoint_id=tmp_path)
    with pytest.raises(ValueError, match=r"config.temperature is 0.1, here 0.5"):
        other.load_state_dict(found)


def test_what_has_the_size_already_stays_the_same_tensor(tmp_path: Path) -> None:
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path)
    given = model.state_dict() | {"new": torch.ones(3), "class_names": ["a", "b"]}
    found = sized_as_saved({"model": given}, tmp_path)["model"]
    assert found.keys() == given.keys()
    assert all(found[name] is given[name] for name in given)
    assert len(found["head.bank.prototypes"]) == CLASSES
    assert not dist.is_initialized()
