"""The real upstream scripts, patched: BRPG_UPSTREAM names a folder that holds their clones, by their names.

Scripts of SSL4MIS, BCP and UniMatch's cardiac segmentation also need what their READMEs list, such as h5py, MedPy and
yacs; DDFP needs FrEIA, AllSpark mmcv, and SemiVL mmcv 1, mmsegmentation 0, timm 0.6, CLIP and seaborn.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from builders import same
from training import ALL, LASTING, RESUMING, assert_trains_as_unpatched, once, train

from brpg_lib.adapters.registry import FRAMEWORKS
from brpg_lib.examples.checkouts import BRPG
from brpg_lib.examples.scenarios import STEPS_OF_SSL4MIS

pytestmark = pytest.mark.upstream


def checkout(framework: str) -> Path:
    found = FRAMEWORKS[framework]
    return Path(os.environ["BRPG_UPSTREAM"]) / found.repository.rpartition("/")[2] / found.home


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("framework", "script"), RESUMING)
def test_trains_is_killed_and_resumes(framework: str, script: str, processes: int, tmp_path: Path) -> None:
    options = {"processes": processes, "epochs": 4}
    steps = 4 // processes
    first = train(framework, script, checkout(framework), tmp_path, **options, kill_at=3 * steps + 1, name="first")
    assert first.returncode != 0, first.log
    for rank in range(processes):
        calls = first.calls[rank]
        assert [call["iteration"] for call in calls] == list(range(3 * steps + 1)), first.log
        assert first.phases(rank) == ["warmup"] * steps + ["collect"] * steps + ["learn"] * (steps + 1)
        assert all(call["loss"] > 0 for call in calls[2 * steps :])
        assert all(call["loss"] == 0 for call in calls[: 2 * steps])
        assert calls[-1]["prototypes"] > 0
    second = train(framework, script, checkout(framework), tmp_path, **options, name="second")
    assert second.returncode == 0, second.log
    for rank in range(processes):
        calls = second.calls[rank]
        assert [call["iteration"] for call in calls] == list(range(3 * steps, 4 * steps)), second.log
        assert calls[0]["before"] == first.calls[rank][3 * steps - 1]["after"], "the prototypes of the checkpoint"
        assert all(call["loss"] > 0 for call in calls)
    for run in (first, second):
        for calls in zip(*run.calls, strict=True):
            for key in ("after", "gradients", "weights"):
                assert len({call[key] for call in calls}) == 1, f"{key} differs between ranks"
    for run in (first, second):
        final = run.calls[0][-1]
        print(f"{framework} {script} x{processes}: loss {final['loss']:.3f}, {final['prototypes']} prototypes")


@pytest.mark.parametrize(("framework", "script"), RESUMING)
def test_disabled_is_upstream_bit_for_bit(framework: str, script: str, tmp_path: Path) -> None:
    states = []
    for name, patched in (("original", False), ("disabled", True)):
        folder = tmp_path / name
        folder.mkdir()
        brpg = {"enabled": False}
        run = train(framework, script, checkout(framework), folder, patched=patched, epochs=2, brpg=brpg)
        assert run.returncode == 0, run.log
        assert not list(folder.rglob("*.brpg*.pth"))
        states.append(torch.load(run.workspace.checkpoint, weights_only=False))
    assert same(*states)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("framework", "script"), LASTING)
def test_trains_for_30_steps(framework: str, script: str, processes: int, tmp_path: Path) -> None:
    if processes > 1 and not FRAMEWORKS[framework].ranks:
        return  # the script knows one process only
    epochs, steps = (3, STEPS_OF_SSL4MIS) if framework in ("ssl4mis", "bcp") else (8 * processes, 4 // processes)
    run = train(framework, script, checkout(framework), tmp_path, processes=processes, epochs=epochs)
    assert run.returncode == 0, run.log
    for rank in range(processes):
        calls = run.calls[rank]
        assert [call["iteration"] for call in calls] == list(range(epochs * steps)), run.log
        assert run.phases(rank) == ["warmup"] * steps + ["collect"] * steps + ["learn"] * (epochs - 2) * steps
        assert [call["loss"] > 0 for call in calls] == [call["phase"] == "learn" for call in calls]
        assert all(once(call["received"]) for call in calls[1:]), "the loss was in each backward pass, once"
        assert calls[-1]["prototypes"] > 0
        assert len({call["weights"] for call in calls}) == len(calls), "the script's optimizer trains the projection"
    for calls in zip(*run.calls, strict=True):
        for key in ("after", "gradients", "weights"):
            assert len({call[key] for call in calls}) == 1, f"{key} differs between ranks"
    assert list(tmp_path.rglob("*.brpg.pth"))
    final = run.calls[0][-1]
    print(f"{framework} {script} x{processes}: loss {final['loss']:.3f}, {final['prototypes']} prototypes")


@pytest.mark.parametrize(("framework", "script"), LASTING)
def test_disabled_is_upstream_bit_for_bit_without_resuming(framework: str, script: str, tmp_path: Path) -> None:
    kept = []
    for name, patched in (("original", False), ("disabled", True)):
        folder = tmp_path / name
        folder.mkdir()
        options = {"patched": patched, "epochs": 2, "brpg": {"enabled": False}}
        run = train(framework, script, checkout(framework), folder, **options)
        assert run.returncode == 0, run.log
        kept.append(run.saved())
    assert len(kept[0]) >= 1
    assert kept[0].keys() == kept[1].keys(), "no file of the plug-in among them"
    assert same(*kept)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("framework", "script"), ALL)
def test_weight_0_is_upstream_bit_for_bit(framework: str, script: str, processes: int, tmp_path: Path) -> None:
    if processes > 1 and not FRAMEWORKS[framework].ranks:
        return  # the script knows one process only
    runs = []
    for name, patched in (("original", False), ("weightless", True)):
        folder = tmp_path / name
        folder.mkdir()
        options = {"patched": patched, "processes": processes, "brpg": BRPG | {"loss_weight": 0.0}}
        runs.append(train(framework, script, checkout(framework), folder, **options))
        assert runs[-1].returncode == 0, runs[-1].log
    original, weightless = runs
    for rank in range(processes):
        assert weightless.phases(rank)[-1] == "learn"
        assert weightless.calls[rank][-1]["prototypes"] > 0
    assert_trains_as_unpatched(weightless, original)
