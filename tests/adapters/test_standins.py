"""Patched scripts that train: stand-ins in the shape of the upstream repositories, on the CPU."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from builders import same
from forking import forking_on_the_cpu  # noqa: F401
from training import RESUMING, Run, assert_trains_as_unpatched, once, train

from brpg_lib.benchmarks.compare.result_files import read_result
from brpg_lib.benchmarks.compare.runs import WITH, WITHOUT
from brpg_lib.examples.checkouts import BRPG, WORKSPACES

pytestmark = pytest.mark.usefixtures("forking_on_the_cpu")
STANDINS = Path(__file__).parents[1] / "standins"
EPOCHS, STEPS = 4, 4
"""Steps of an epoch of one process: an epoch of warm-up, one of collecting, two of learning."""

OWN_SCALAR = {"u2pl": "Sup_Loss", "ddfp": "Sup_Loss", "unimatch": "train/loss", "unimatch-v2": "train/loss"}
SCORES = {
    "u2pl": ["mIoU_val"],
    "unimatch": ["eval/mIoU"],
    "unimatch-v2": ["eval/mIoU_ema"],
    "unimatch-remote-sensing": ["eval/unchanged_IoU", "eval/changed_IoU"],
    "unimatch-v2-remote-sensing": ["eval/unchanged_IoU_ema", "eval/changed_IoU_ema"],
    "unimatch-medical": ["eval/MeanDice"],
    "allspark": ["eval/mIoU"],
    "ddfp": ["mIoU_val", "mIoU_val_teacher"],
}
"""Scalars whose mean is the score that is written down; DDFP's is the better one."""
OWNERS = {
    "projection": {framework for framework, _ in RESUMING} - {"u2pl"},
    "teacher_projection": {"unimatch-v2", "ddfp"},
}
OFF = {"enabled": False}
WEIGHTLESS = {"loss_weight": 0.0}


def checkout(framework: str) -> Path:
    return STANDINS / framework.replace("-", "_")


def head(framework: str) -> dict[str, Any]:
    """The section of a training with the head; U2PL's representations have the width they have."""
    return BRPG if framework == "u2pl" else BRPG | {"feature_dim": 32}


@dataclass
class Trainings:
    """What one script did in several trainings."""

    framework: str
    script: str
    killed: Run  # two processes, in the middle of the last epoch
    resumed: Run  # two processes, after that
    alone: Run  # one process
    unpatched: Run
    disabled: Run
    weightless: Run  # with a head whose loss counts nothing

    def files(self, run: Run) -> set[str]:
        return {file.name for file in run.workspace.checkpoint.parent.glob("*.pth")}

    def checkpoint(self, run: Run) -> dict[str, Any]:
        return torch.load(run.workspace.checkpoint, weights_only=False)

    def trained_parameters(self, run: Run) -> int:
        """Parameters of the script's optimizer, in its checkpoint."""
        (optimizer,) = [state for name, state in self.checkpoint(run).items() if name.startswith("optimizer")]
        return sum(len(group["params"]) for group in optimizer["param_groups"])


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A workspace of each framework, with the weights that all its trainings start from."""

    @cache
    def workspace(framework: str) -> Path:
        folder = tmp_path_factory.mktemp(framework)
        WORKSPACES[framework](checkout(framework), folder, EPOCHS, {})
        return folder

    return workspace


SLOW = {"unimatch-remote-sensing", "unimatch-v2-remote-sensing", "unimatch-medical", "fixmatch.py"}
CASES = [pytest.param(case, id="-".join(case), marks=[pytest.mark.slow] if {*case} & SLOW else []) for case in RESUMING]
"""Slow ones: most of what the other scenarios do is like what the plain scripts do."""


@pytest.fixture(scope="module", params=CASES)
def trainings(
    request: pytest.FixtureRequest, blank: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Trainings:
    framework, script = request.param

    def run(name: str, **options: Any) -> Callable[[], Run]:
        folder = tmp_path_factory.mktemp(name) / "workspace"
        shutil.copytree(blank(framework), folder)
        options = {"epochs": EPOCHS, "brpg": head(framework)} | options
        return lambda **more: train(framework, script, checkout(framework), folder, **(options | more))

    pair = run("pair", processes=2)
    jobs: list[Callable[[], Any]] = [
        lambda: (pair(kill_at=3 * STEPS // 2 + 1, name="killed"), pair(name="resumed")),
        run("alone"),
        run("unpatched", patched=False),
        run("disabled", brpg=OFF),
        run("weightless", brpg=head(framework) | WEIGHTLESS),
    ]
    with ThreadPoolExecutor(2) as pool:
        (killed, resumed), *others = pool.map(lambda job: job(), jobs)
    return Trainings(framework, script, killed, resumed, *others)


def test_each_phase_has_its_loss(trainings: Trainings) -> None:
    assert trainings.alone.returncode == 0, trainings.alone.log
    for run, processes, count in ((trainings.alone, 1, 4 * STEPS), (trainings.killed, 2, 3 * STEPS // 2 + 1)):
        steps = STEPS // processes
        assert len(run.calls) == processes, run.log
        for rank, calls in enumerate(run.calls):
            assert [call["iteration"] for call in calls] == list(range(count)), run.log
            phases = ["warmup"] * steps + ["collect"] * steps + ["learn"] * 2 * steps
            assert run.phases(rank) == phases[:count]
            for call in calls:
                assert call["requires_grad"]
                assert (call["loss"] > 0) == (call["phase"] == "learn")
                assert (call["prototypes"] > 0) == (call["phase"] == "learn")
            assert all(once(call["received"]) for call in calls[1:]), "the loss was in each backward pass, once"
            assert calls[2 * steps - 1]["rows"] > 0
            sampling = {"collect", "learn"} if trainings.framework == "u2pl" else {"collect"}
            assert {call["phase"] for call in calls if call["weak"]} == sampling
            assert all(call["weak"] for call in calls if call["phase"] == "collect")


def test_ranks_agree(trainings: Trainings) -> None:
    for run in (trainings.killed, trainings.resumed):
        for calls in zip(*run.calls, strict=True):
            for key in ("before", "after", "prototypes", "rows", "gradients", "weights"):
                assert len({call[key] for call in calls}) == 1, f"{key} at iteration {calls[0]['iteration']}"
        seen = [[call["images"] for call in calls] for calls in run.calls]
        assert seen[0] != seen[1], "ranks see images of their own"
        for one, other in zip(*run.calls, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5), "the loss is that of all of them"


def test_the_projection_learns(trainings: Trainings) -> None:
    for run in (trainings.alone, trainings.killed, trainings.resumed):
        for calls in run.calls:
            learned = [call["phase"] == "learn" for call in calls[:-1]]
            if trainings.framework not in OWNERS["projection"]:  # it has a representation branch of its own
                assert len({call["weights"] for call in calls}) == 1
                continue
            assert [call["moving"] for call in calls] == [False, *learned]
            assert len({call["weights"] for call in calls}) == len(calls)
    without, parameters = map(trainings.trained_parameters, (trainings.disabled, trainings.alone))
    assert (parameters > without) == (trainings.framework in OWNERS["projection"]), "the script's optimizer trains it"


def test_resumes_where_it_was_killed(trainings: Trainings) -> None:
    killed, resumed = trainings.killed, trainings.resumed
    assert killed.returncode != 0
    assert resumed.returncode == 0, resumed.log
    steps = STEPS // 2
    for before, after in zip(killed.calls, resumed.calls, strict=True):
        assert [call["iteration"] for call in after] == list(range(3 * steps, 4 * steps)), resumed.log
        assert {call["phase"] for call in after} == {"learn"}
        assert after[0]["before"] == before[3 * steps - 1]["after"], "the prototypes of the checkpoint"
        assert after[0]["weights"] == before[3 * steps]["weights"], "the projection of the checkpoint"
        assert all(call["loss"] > 0 for call in after)
    best = {
        name: value for name, value in trainings.checkpoint(resumed).items() if "best" in name and "epoch" not in name
    }
    kind = float if trainings.framework == "unimatch-medical" else np.float64
    assert {type(value) for value in best.values()} == {kind}, "the latter is what torch.load refuses unless told"


def test_state_files(trainings: Trainings) -> None:
    name = trainings.resumed.workspace.checkpoint.stem
    best = {"ckpt": "ckpt_best"}.get(name, "best")
    for run in (trainings.resumed, trainings.alone):
        files = trainings.files(run)
        assert {f"{name}.pth", f"{name}.brpg.pth", f"{name}.brpg.previous.pth"} <= files
        assert (f"{best}.pth" in files) == (f"{best}.brpg.pth" in files)
        loaded = {
            file: torch.load(run.workspace.checkpoint.with_name(file), weights_only=True)["plugin"]
            for file in files
            if ".brpg." in file
        }
        states = loaded[f"{name}.brpg.pth"], loaded[f"{name}.brpg.previous.pth"]
        for part in ("head", "projection", "teacher_projection"):
            now, before = ({key: state[key] for key in state if key.startswith(f"{part}.")} for state in states)
            has_part = part == "head" or trainings.framework in OWNERS[part]
            assert (len(now) > 0) == has_part
            assert same(now, before) != has_part, "it moves"


def test_disabled_is_unpatched_bit_for_bit(trainings: Trainings) -> None:
    runs = trainings.unpatched, trainings.disabled
    for run in runs:
        assert run.returncode == 0, run.log
        assert not run.calls
        assert not [file for file in run.workspace.folder.rglob("*") if ".brpg" in file.name]
    assert trainings.files(runs[0]) == trainings.files(runs[1])
    states = [trainings.checkpoint(run) for run in (*runs, trainings.alone)]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])
    assert runs[0].scalars() == runs[1].scalars()


def test_weight_0_leaves_the_script_s_training_as_it_is(trainings: Trainings) -> None:
    assert trainings.weightless.returncode == 0, trainings.weightless.log
    assert trainings.weightless.calls[0][-1]["prototypes"] > 0, "the head does all else"
    assert_trains_as_unpatched(trainings.weightless, trainings.unpatched)


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "script"), RESUMING)
def test_weight_0_on_two_processes(framework: str, script: str, blank: Callable[[str], Path], tmp_path: Path) -> None:
    runs = []
    for patched in (False, True):
        folder = shutil.copytree(blank(framework), tmp_path / str(patched))
        options: dict[str, Any] = {"patched": patched, "brpg": head(framework) | WEIGHTLESS, "processes": 2}
        runs.append(train(framework, script, checkout(framework), folder, epochs=EPOCHS, **options))
        assert runs[-1].returncode == 0, runs[-1].log
    assert_trains_as_unpatched(runs[1], runs[0])


def test_scalars(trainings: Trainings) -> None:
    found = trainings.alone.scalars()
    calls = {call["iteration"]: call for call in trainings.alone.calls[0]}
    steps = found[OWN_SCALAR.get(trainings.framework, "train/loss_all")].keys()
    assert len(steps) >= 2
    for key in ("loss", "prototypes"):
        assert found[f"brpg/{key}"] == {step: pytest.approx(calls[step][key]) for step in steps}


def test_scores_are_written_for_comparison(trainings: Trainings) -> None:
    compared = []
    for run, with_head in ((trainings.resumed, True), (trainings.alone, True), (trainings.disabled, False)):
        path = run.workspace.checkpoint.with_name("brpg_result.json")
        found = json.loads(path.read_text())
        assert found["head"] == with_head
        assert [validation["epoch"] for validation in found["validations"]] == list(range(EPOCHS)), "once, also resumed"
        last = found["validations"][-1]
        score = last["dice" if trainings.framework == "unimatch-medical" else "miou"]
        if run is not trainings.resumed:  # whose scalars are in two files
            logged = [run.scalars()[name][EPOCHS - 1] for name in SCORES[trainings.framework]]
            expected = max(logged) if trainings.framework == "ddfp" else np.mean(logged)
            assert score == pytest.approx(expected, abs=1e-3)
        if trainings.framework not in ("u2pl", "unimatch-medical", "ddfp"):
            assert np.mean(list(last["iou"].values())) == pytest.approx(score)
        compared.append(read_result(path))
    resumed, alone, disabled = compared
    assert [run.variant for run in compared] == [WITH, WITH, WITHOUT]
    assert resumed.fixed == alone.fixed == disabled.fixed
    assert (alone.seed, alone.setting) == (disabled.seed, disabled.setting)


def test_wrong_settings_stop_the_training(trainings: Trainings, tmp_path: Path) -> None:
    framework, script = trainings.framework, trainings.script
    name = trainings.alone.workspace.checkpoint.name
    cases: list[tuple[Run, dict[str, Any], str]] = [
        (trainings.alone, OFF, f"brpg.enabled: expected true, found false, but {name} was trained with the head"),
        (trainings.disabled, head(framework), "one trained without the head needs enabled: false"),
        (trainings.unpatched, {"queue_sise": 5}, "brpg.queue_sise: did you mean queue_size? expected one of"),
    ]

    def resume(index: int) -> Run:
        before, section, _ = cases[index]
        folder = Path(shutil.copytree(before.workspace.folder, tmp_path / str(index)))
        return train(framework, script, checkout(framework), folder, epochs=EPOCHS + 1, brpg=section, name="stopped")

    with ThreadPoolExecutor(2) as pool:
        for stopped, (*_, message) in zip(pool.map(resume, range(len(cases))), cases, strict=True):
            assert stopped.returncode != 0
            assert message in stopped.log
            assert not stopped.calls


@pytest.mark.parametrize("fixes", [(), ("frozen-rate",)])
def test_the_rate_after_a_resume(fixes: tuple[str, ...], blank: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(blank("u2pl"), tmp_path, dirs_exist_ok=True)
    rates = []
    for name, kill_at in (("killed", 2 * STEPS + 1), ("resumed", -1)):
        options: dict[str, Any] = {"epochs": 3, "brpg": head("u2pl"), "fixes": fixes, "kill_at": kill_at}
        run = train("u2pl", "train_semi.py", checkout("u2pl"), tmp_path, **options, name=name)
        state = torch.load(run.workspace.checkpoint, weights_only=False)["optimizer_state"]
        rates.append([group["lr"] for group in state["param_groups"]])
    assert run.returncode == 0, run.log
    assert (rates[1] < rates[0]) == bool(fixes), "frozen unless fixed"
    if fixes:
        steps = 3 * STEPS
        assert rates[1] == pytest.approx([rate * (1 / (steps - 2 * STEPS + 1)) ** 0.9 for rate in rates[0]])


@pytest.mark.parametrize("fixes", [(), ("lost-teacher",)])
def test_the_teacher_after_a_resume(fixes: tuple[str, ...], blank: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(blank("ddfp"), tmp_path, dirs_exist_ok=True)
    options: dict[str, Any] = {"epochs": 3, "brpg": head("ddfp"), "fixes": fixes}
    weights = []
    for name, kill_at in (("killed", 2 * STEPS + 1), ("resumed", -1)):
        run = train("ddfp", "train_ddfp_pascal.py", checkout("ddfp"), tmp_path, **options, kill_at=kill_at, name=name)
        state = torch.load(run.workspace.checkpoint, weights_only=False)["teacher_state"]
        weights.append(state["module.decoder.final.weight"])
    assert run.returncode == 0, run.log
    moved = (weights[1] - weights[0]).norm() / weights[0].norm()
    assert (moved < 0.1) == bool(fixes), "another network unless fixed"


def test_under_torchrun(blank: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "subprocess", subprocess)
    framework, script = "unimatch-v2", "fixmatch.py"
    shutil.copytree(blank(framework), tmp_path, dirs_exist_ok=True)
    run = train(framework, script, checkout(framework), tmp_path, processes=2, epochs=3, brpg=head(framework))
    assert run.returncode == 0, run.log
    for rank in range(2):
        assert run.phases(rank) == ["warmup"] * 2 + ["collect"] * 2 + ["learn"] * 2
    assert "learning with" in run.log
