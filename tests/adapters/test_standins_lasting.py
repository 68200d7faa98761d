"""Patched scripts that never resume: stand-ins in the shape of CorrMatch, SemiVL, SSL4MIS and BCP, on the CPU."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from builders import same
from forking import forking_on_the_cpu  # noqa: F401
from training import LASTING, Run, assert_trains_as_unpatched, once, train

from brpg_lib.adapters.registry import FRAMEWORKS
from brpg_lib.benchmarks.compare.result_files import read_result
from brpg_lib.benchmarks.compare.runs import WITH, WITHOUT
from brpg_lib.examples.checkouts import BRPG
from brpg_lib.examples.scenarios import STEPS_OF_SSL4MIS

pytestmark = pytest.mark.usefixtures("forking_on_the_cpu")
STANDINS = Path(__file__).parents[1] / "standins"
HEAD = BRPG | {"feature_dim": 16}
EPOCHS = 4
MEDICAL = ("ssl4mis", "bcp")


@dataclass
class Trainings:
    """What one script did in several trainings."""

    framework: str
    alone: Run
    pair: Run | None  # two processes, if the script knows them
    unpatched: Run
    disabled: Run
    weightless: Run  # with a head whose loss counts nothing

    def steps(self, processes: int) -> int:
        """Iterations of an epoch."""
        return STEPS_OF_SSL4MIS if self.framework in MEDICAL else 4 // processes

    @property
    def with_head(self) -> list[tuple[int, Run]]:
        """The trainings with the head, by number of processes."""
        return [(1, self.alone), *([(2, self.pair)] if self.pair else [])]


SLOW = {"prevmatch", "train_uncertainty_aware_mean_teacher_2D.py"}
CASES = [pytest.param(case, id="-".join(case), marks=[pytest.mark.slow] if {*case} & SLOW else []) for case in LASTING]


@pytest.fixture(scope="module", params=CASES)
def trainings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    framework, script = request.param

    def run(name: str, **options: Any) -> Run:
        options = {"epochs": EPOCHS, "brpg": HEAD} | options
        return train(framework, script, STANDINS / framework, tmp_path_factory.mktemp(name), **options)

    with ThreadPoolExecutor(2) as pool:
        alone = pool.submit(run, "alone")
        pair = pool.submit(run, "pair", processes=2) if FRAMEWORKS[framework].ranks else None
        unpatched = pool.submit(run, "unpatched", patched=False)
        disabled = pool.submit(run, "disabled", brpg={"enabled": False})
        weightless = pool.submit(run, "weightless", brpg=HEAD | {"loss_weight": 0.0})
    others = (unpatched.result(), disabled.result(), weightless.result())
    return Trainings(framework, alone.result(), pair and pair.result(), *others)


def test_each_phase_has_its_loss(trainings: Trainings) -> None:
    for processes, run in trainings.with_head:
        assert run.returncode == 0, run.log
        steps = trainings.steps(processes)
        assert len(run.calls) == processes
        for rank, calls in enumerate(run.calls):
            assert [call["iteration"] for call in calls] == list(range(EPOCHS * steps))
            assert run.phases(rank) == ["warmup"] * steps + ["collect"] * steps + ["learn"] * 2 * steps
            for call in calls:
                assert (call["loss"] > 0) == (call["prototypes"] > 0) == (call["phase"] == "learn")
                assert call["weak"] == (call["phase"] == "collect")
            assert all(once(call["received"]) for call in calls[1:]), "the loss was in each backward pass, once"
            assert [call["moving"] for call in calls] == [False, *(call["phase"] == "learn" for call in calls[:-1])]
            assert len({call["weights"] for call in calls}) == len(calls), (
                "the script's optimizer trains the projection"
            )
        for calls in zip(*run.calls, strict=True):
            for key in ("before", "after", "gradients", "weights"):
                assert len({call[key] for call in calls}) == 1, f"{key} at iteration {calls[0]['iteration']}"


def test_disabled_is_unpatched_bit_for_bit(trainings: Trainings) -> None:
    for run in (trainings.unpatched, trainings.disabled):
        assert run.returncode == 0, run.log
        assert not run.calls
    before, after = trainings.unpatched.saved(), trainings.disabled.saved()
    assert len(before) >= 1
    assert before.keys() == after.keys()
    assert same(before, after)
    assert trainings.unpatched.scalars() == trainings.disabled.scalars()
    assert not same(before, trainings.alone.saved()), "the head makes a difference"


def test_weight_0_leaves_the_script_s_training_as_it_is(trainings: Trainings) -> None:
    assert trainings.weightless.returncode == 0, trainings.weightless.log
    assert trainings.weightless.calls[0][-1]["prototypes"] > 0, "the head does all else"
    assert_trains_as_unpatched(trainings.weightless, trainings.unpatched)


def test_the_head_s_loss_is_added_to_the_script_s(trainings: Trainings) -> None:
    without, with_head = trainings.unpatched.scalars(), trainings.alone.scalars()
    assert without.keys() == {tag for tag in with_head if not tag.startswith("brpg/")}
    if "info/total_loss" in without:
        pairs = [(value, with_head["info/total_loss"][step]) for step, value in without["info/total_loss"].items()]
        assert pairs[0][0] == pairs[0][1], "nothing in the warm-up"
        assert all(more > less for less, more in pairs[2 * trainings.steps(1) :])


def test_state_and_scalars(trainings: Trainings) -> None:
    states = {name: state for name, state in trainings.alone.saved().items() if ".brpg." in name}
    assert len(states) >= 1
    for state in states.values():
        names = state["plugin"].keys()
        assert any(name.startswith("head.") for name in names)
        assert any(name.startswith("projection.") for name in names)
    logged = trainings.alone.scalars().get("brpg/loss", {})
    if trainings.framework in MEDICAL:
        calls = trainings.alone.calls[0]
        assert logged == {call["iteration"] + 1: pytest.approx(call["loss"]) for call in calls}, "as the script counts"
    assert "learning with" in trainings.alone.log


def test_scores_are_written_for_comparison(trainings: Trainings) -> None:
    runs = []
    for run in (trainings.alone, trainings.disabled):
        (path,) = run.workspace.checkpoint.parent.rglob("brpg_result.json")
        assert json.loads(path.read_text())["head"] == (run is trainings.alone)
        runs.append(read_result(path))
    with_head, without = runs
    assert with_head is not None
    assert without is not None
    assert (with_head.variant, without.variant) == (WITH, WITHOUT)
    assert list(with_head.scores) == ["Dice" if trainings.framework in MEDICAL else "mIoU"]
    assert with_head.fixed == without.fixed
    assert (with_head.seed, with_head.setting) == (without.seed, without.setting)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("enabled: true", "expected a section brpg, found enabled"),
        ("brpg: {queue_sise: 5}", "brpg.queue_sise: did you mean queue_size? expected one of"),
    ],
)
def test_a_wrong_section_stops_ssl4mis(
    section: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_text = Path.write_text

    def write(path: Path, text: str, *args: Any, **kwargs: Any) -> int:
        return run_text(path, section if path.name == "brpg.yaml" else text, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", write)
    run = train("ssl4mis", "train_mean_teacher_2D.py", STANDINS / "ssl4mis", tmp_path)
    assert run.returncode != 0
    assert message in run.log
    assert not run.calls
