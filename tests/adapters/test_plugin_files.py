"""The files in which a patched script keeps the state of the head."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CLASSES, same, state
from plugins import plugin, projecting, run, step

from brpg_lib import Phase
from brpg_lib.adapters.plugin import Plugin


def trained(steps: int, **options: Any) -> Plugin:
    """A plug-in with a projection and a teacher, some way on."""
    brpg = projecting(teacher=True, **options)
    for _ in range(steps):
        brpg.project(torch.randn(2, 6, 4, 4))
        brpg.update_teacher(0.5)
    return run(brpg, range(steps))


def loaded(checkpoint: Path, epoch: int, **options: Any) -> dict[str, Any]:
    brpg = projecting(teacher=True, seed=99, **options)
    brpg.load(checkpoint, epoch)
    return state(brpg)


@pytest.fixture
def latest(tmp_path: Path) -> Path:
    return tmp_path / "exp" / "latest.pth"


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 6])
def test_save_and_load(latest: Path, steps: int) -> None:
    brpg = trained(steps)
    brpg.save(str(latest), 5)
    assert same(loaded(latest, 5), state(brpg))
    assert [file.name for file in latest.parent.iterdir()] == ["latest.brpg.pth"]
    torch.load(latest.with_name("latest.brpg.pth"), weights_only=True)
    resumed = projecting(teacher=True)
    resumed.load(str(latest), 5)
    assert torch.equal(step(resumed, steps), step(brpg, steps))
    maps = torch.randn(2, 6, 4, 4)
    assert torch.equal(*(plugged.project(maps)[0] for plugged in (resumed, brpg))), "with the same channels dropped"
    assert same(state(resumed), state(brpg))


def test_the_state_before_is_kept(latest: Path) -> None:
    brpg, states = trained(0), []
    for epoch in range(4):
        run(brpg, range(2 * epoch, 2 * epoch + 2))
        brpg.save(latest, epoch)
        states.append(state(brpg))
    assert same(loaded(latest, 3), states[3])
    assert same(loaded(latest, 2), states[2]), "killed before the script wrote its checkpoint of epoch 3"
    assert {file.name for file in latest.parent.iterdir()} == {"latest.brpg.pth", "latest.brpg.previous.pth"}
    for epoch in (0, 1, 4):
        with pytest.raises(ValueError, match=rf"of epoch {epoch}, found .* of epoch 3, .* of epoch 2;"):
            loaded(latest, epoch)


@pytest.mark.parametrize("epoch", [np.int64(7), 7, torch.tensor(7)])
def test_epochs_of_any_integer_type(latest: Path, epoch: Any) -> None:
    brpg = trained(1)
    brpg.save(latest, epoch)
    assert same(loaded(latest, 7), state(brpg))
    assert same(loaded(latest, epoch), state(brpg))


def test_best_and_latest_are_apart(latest: Path) -> None:
    best = latest.with_name("best.pth")
    first, second = trained(2), trained(5)
    first.save(latest, 0)
    first.save(best, 0)
    second.save(latest, 1)
    assert same(loaded(best, 0), state(first))
    assert same(loaded(latest, 1), state(second))


@pytest.mark.parametrize("writes", range(4))
def test_a_kill_at_any_moment_of_saving_loses_nothing(
    latest: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script still has its checkpoint of epoch 1."""
    brpg = trained(1)
    for epoch in (0, 1):
        brpg.save(latest, epoch)
    expected = state(brpg)
    run(brpg, range(1, 5))
    done = 0

    def counted(function: Any) -> Any:
        def act(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done == writes:
                raise KeyboardInterrupt
            done += 1
            return function(*args, **kwargs)

        return act

    monkeypatch.setattr(torch, "save", counted(torch.save))
    monkeypatch.setattr(os, "replace", counted(os.replace))
    try:
        brpg.save(latest, 2)
    except KeyboardInterrupt:
        assert done == writes
    monkeypatch.undo()
    assert same(loaded(latest, 1), expected)


def test_a_partial_write_is_no_state(latest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brpg = trained(1)
    brpg.save(latest, 0)
    expected = state(brpg)
    run(brpg, range(1, 5))

    def partial(value: Any, file: Any) -> None:
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", partial)
    with pytest.raises(OSError, match="No space left"):
        brpg.save(latest, 1)
    monkeypatch.undo()
    assert same(loaded(latest, 0), expected)


def test_killed_twice_before_the_script_wrote(latest: Path) -> None:
    brpg = trained(1)
    brpg.save(latest, 0)
    expected = state(brpg)
    for _ in range(2):  # resumed from epoch 0, killed after saving the state of epoch 1, before the checkpoint
        brpg = projecting(teacher=True)
        brpg.load(latest, 0)
        assert same(state(brpg), expected)
        run(brpg, range(1, 3)).save(latest, 1)
    assert same(loaded(latest, 0), expected)


def test_no_state_at_all(latest: Path) -> None:
    with pytest.raises(ValueError, match=r"expected .* of epoch 3, found none; .*enabled: false"):
        loaded(latest, 3)


def test_disabled_refuses_a_checkpoint_with_a_head(latest: Path) -> None:
    trained(1).save(latest, 0)
    with pytest.raises(
        ValueError, match=r"^brpg\.enabled: expected true, found false, but latest\.pth was trained with"
    ):
        plugin({"enabled": False}).load(latest, 0)
    plugin({"enabled": False}).load(latest.with_name("another.pth"), 0)
    latest.with_name("latest.brpg.pth").rename(latest.with_name("latest.brpg.previous.pth"))
    with pytest.raises(ValueError, match=r"^brpg\.enabled"):
        plugin({"enabled": False}).load(latest, 0)


@pytest.mark.parametrize("section", [{"temperature": 0.5}, {"queue_size": 50}, {"feature_dim": 7}])
def test_another_head_is_refused(latest: Path, section: dict[str, Any]) -> None:
    """By a ValueError that names the setting."""
    trained(5).save(latest, 0)
    (name,) = section
    brpg = projecting(section, teacher=True)
    before = state(brpg)
    with pytest.raises(ValueError, match=rf"\b{name} is .*, here {section[name]}"):
        brpg.load(latest, 0)
    assert same(state(brpg), before)


def test_a_resumed_head_goes_on_in_its_phase(latest: Path) -> None:
    trained(3).save(latest, 0)
    brpg = projecting(teacher=True)
    brpg.load(latest, 0)
    assert brpg.head.phase is Phase.COLLECT
    assert brpg.weak_view(torch.randn(2, 6, 4, 4), torch.randn(2, CLASSES, 4, 4))


def test_a_damaged_state_gives_way_to_the_one_before(latest: Path) -> None:
    brpg = plugin()
    for epoch in range(2):
        step(brpg, epoch)
        brpg.save(latest, epoch)
    current = latest.with_suffix(".brpg.pth")
    for damage in (b"", b"no state", current.read_bytes()[:100]):
        current.write_bytes(damage)
        plugin().load(latest, 0)
        with pytest.raises(ValueError, match=r"of epoch 1, found .* of epoch None, .* of epoch 0"):
            plugin().load(latest, 1)
    brpg.save(latest, 1)
    plugin().load(latest, 1)
