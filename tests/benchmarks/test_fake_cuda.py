"""Every benchmark's tensors meet on the device, as far as can be seen without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import DeviceCopyError, NoCopies, fake_cuda, needs_fake_cuda
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from brpg_lib import PrototypeBank, PrototypeHead
from brpg_lib.benchmarks import clustering, features, growth, step, training_overhead
from brpg_lib.benchmarks.command import Options
from brpg_lib.benchmarks.networks import network
from brpg_lib.benchmarks.presets import PRESETS
from brpg_lib.examples.training.frameworks import base
from brpg_lib.learn import points

PRESET = PRESETS["voc"].scaled("tiny")
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)

pytestmark = needs_fake_cuda


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A fake one.

    The first call of a head, which looks whether every class has prototypes, is skipped: they have. So is the backward
    pass, for which torch wants a driver.
    """

    def settle(head: PrototypeHead, inputs: step.Inputs) -> None:
        head.timeline._settled_with = head.bank.mask_version

    def fill(bank: PrototypeBank, vectors: torch.Tensor, mask: torch.Tensor) -> None:
        with suppress(DynamicOutputShapeException):  # are the values finite? There are none
            set_prototypes(bank, vectors, mask)

    set_prototypes, build = PrototypeBank.set, step.learning_head
    monkeypatch.setattr(PrototypeBank, "set", fill)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)

    def learning_head(*arguments: Any) -> PrototypeHead:
        with monkeypatch.context() as patch:
            patch.setattr(step, "call", settle)
            return build(*arguments)

    for module in (step, training_overhead):
        monkeypatch.setattr(module, "learning_head", learning_head)
    with fake_cuda() as found:
        yield found


def test_the_learn_step_copies_nothing_and_waits_for_nothing(device: torch.device) -> None:
    inputs = step.Inputs.random(PRESET, device)
    run = step.our_step(step.learning_head(PRESET, inputs), inputs)
    with NoCopies() as guard:
        out = run(step.Silent(device))
    assert guard.total > 100
    assert all(value.device.type == "cuda" for value in out.values())


def test_the_other_formulations_of_the_step(device: torch.device) -> None:
    inputs = step.Inputs.random(PRESET, device)
    with pytest.raises(NEEDS_VALUES):  # how many points there are
        step.published_step(PRESET, inputs)(step.Silent(device))
    with pytest.raises(NEEDS_VALUES):
        step.update_alone(step.learning_head(PRESET, inputs), PRESET, inputs)


@pytest.mark.parametrize("name", growth.LEARNING)
def test_growth_of_the_learn_step(device: torch.device, name: str) -> None:
    preset = growth.LEARNING[name](growth.SMALLEST["tiny"], 2)
    run = growth.step_run(preset, device)
    with NoCopies() as guard:
        run(step.Silent(device))
    assert guard.total > 100


@pytest.mark.parametrize("variant", [training_overhead.BASELINE, training_overhead.BRANCH, training_overhead.HEAD])
@pytest.mark.parametrize("trainer", training_overhead.TRAINERS)
def test_training_overhead(device: torch.device, trainer: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = partial(
        network, PRESET.num_classes, None if variant == training_overhead.BASELINE else PRESET.feature_dim, True
    )
    # Tensors without values cannot be copied with all that holds them.
    monkeypatch.setattr(base, "copy", SimpleNamespace(deepcopy=lambda _: twin()))
    monkeypatch.setattr(training_overhead, "cutmix_boxes", lambda n, size: torch.zeros(n, size, size, dtype=torch.bool))
    options = Options(PRESET, "tiny", device, 1)
    run = training_overhead.training_step(training_overhead.TRAINERS[trainer], variant, PRESET, options)
    with NoCopies() as guard:
        run(step.Silent(device))
    assert guard.total > 100


@pytest.mark.parametrize("name", ["clustering", *growth.CLUSTERING])
def test_clustering(device: torch.device, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the first kernel, which gets tensors of one device."""
    preset = PRESET if name == "clustering" else growth.CLUSTERING[name](growth.SMALLEST["tiny"], 2)
    seen: list[set[str]] = []

    def reached(*tensors: torch.Tensor, backend: str) -> None:
        seen.append({tensor.device.type for tensor in tensors})
        raise InterruptedError(backend)

    monkeypatch.setattr(clustering, "kmeans", reached)
    rows, clusters = features.queue(preset, device)
    keys = torch.arange(len(rows), device=device)
    numbers = torch.full((len(rows),), rows.shape[1], device=device)
    with pytest.raises(InterruptedError, match="torch"):
        clustering.ours(rows, numbers, clusters, keys, "torch", step.Silent(device))
    assert seen == [{"cuda"}]
    own = clustering.own(rows, clusters)
    assert own
    for run in own.values():
        with pytest.raises(InterruptedError):
            run(step.Silent(device))
    assert all(devices == {"cuda"} for devices in seen)


def planted(length: int, grid_size: int, device: torch.device) -> torch.Tensor:
    """Grid positions as they were once: setting one copies a number to the device."""
    found = torch.arange(grid_size + 1, device=device)
    found[-1] = length - 1
    return found


def test_a_planted_copy_is_found(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = step.Inputs.random(PRESET, device)
    run = step.our_step(step.learning_head(PRESET, inputs), inputs)
    monkeypatch.setattr(points, "grid_positions", planted)
    with pytest.raises(DeviceCopyError, match="cpu and cuda"), NoCopies():
        run(step.Silent(device))


def test_a_planted_mask_on_the_host_is_found(device: torch.device) -> None:
    inputs = step.Inputs.random(PRESET, device)
    head = step.learning_head(PRESET, inputs)
    with pytest.raises(ValueError, match="mask"):
        head.bank.set(inputs.prototypes, torch.ones(inputs.prototypes.shape[:3], dtype=torch.bool))
