"""The harness: turns, parts, failures, memory."""

from __future__ import annotations

import time

import pytest
import torch

from brpg_lib.benchmarks import memory
from brpg_lib.benchmarks.measure import Clock, Timing, environment, one_line, race
from brpg_lib.benchmarks.memory import extra_memory, resident, sampled_peak

CPU = torch.device("cpu")
MEGABYTES = 64


def allocate() -> torch.Tensor:
    """Memory that is really written, given up, and a little that stays."""
    torch.ones(MEGABYTES * 2**20 // 4).sum()
    return torch.ones(10)


def test_contenders_take_turns() -> None:
    order = []
    contenders = {name: lambda clock, name=name: order.append(name) for name in "ab"}
    timings = race(contenders, CPU, repeats=3, memory=False)
    assert order == list("ab") * 4, "one warm-up and three runs"
    assert all(len(timing.runs) == 3 for timing in timings.values())


def test_parts_and_preparation() -> None:
    def run(clock: Clock) -> int:
        time.sleep(0.05)
        clock.start()
        time.sleep(0.01)
        clock.lap("first")
        time.sleep(0.02)
        clock.lap("second")
        return 7

    timing = race({"it": run}, CPU, repeats=2, memory=False)["it"]
    summary = timing.summary()
    assert timing.result == 7
    assert summary["parts"].keys() == {"first", "second"}
    assert 0.01 <= summary["parts"]["first"] < summary["parts"]["second"]
    assert 0.03 <= summary["fastest"] <= summary["seconds"] <= summary["slowest"]
    assert summary["seconds"] < 0.05 + 0.03, "preparation does not count"


def test_a_contender_that_fails_is_out_with_its_reason() -> None:
    def fails(clock: Clock) -> None:
        raise RuntimeError("\n  no such kernel\nmore")

    told: list[str] = []
    timings = race({"bad": fails, "good": lambda clock: None}, CPU, 1, told.append)
    assert timings["bad"].summary() == {"failure": "RuntimeError: no such kernel"}
    assert timings["good"].failure is None
    assert told == ["bad, warming up", "good, warming up", "good, memory", "good, run 1 of 1"]
    assert one_line(KeyError()) == "KeyError"


def test_warming_up_with_something_cheaper() -> None:
    order: list[str] = []
    race({"it": lambda clock: order.append("real")}, CPU, 1, warm_up={"it": lambda clock: order.append("cheap")})
    assert order == ["cheap", "real", "real"]


def test_the_median_of_a_part() -> None:
    timing = Timing(runs=[{"total": 1.0}, {"total": 9.0}, {"total": 2.0}])
    assert timing.median() == 2.0


@pytest.mark.skipif(resident("VmHWM") == 0, reason="needs /proc")
def test_memory_sees_what_was_given_up() -> None:
    extra_memory(CPU, allocate)
    found = extra_memory(CPU, allocate)
    assert found is not None
    assert found / 2**20 == pytest.approx(MEGABYTES, rel=0.1)
    again = extra_memory(CPU, lambda: None)
    assert again is not None
    assert again < 2**20, "the peak before does not count"


@pytest.mark.skipif(resident("VmRSS") == 0, reason="needs /proc")
def test_memory_where_the_peak_cannot_be_reset(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "nowhere" / "clear_refs")

    def hold() -> None:
        values = torch.ones(MEGABYTES * 2**20 // 4)
        time.sleep(0.05)
        del values

    found = extra_memory(CPU, hold)
    assert found is not None
    assert found / 2**20 == pytest.approx(MEGABYTES, rel=0.1)
    with pytest.raises(ZeroDivisionError):
        sampled_peak(lambda: 1 / 0)


def test_memory_that_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in ("CLEAR", "STATUS"):
        monkeypatch.setattr(memory, name, tmp_path / "nowhere" / name)
    assert extra_memory(CPU, allocate) is None


def test_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.delenv("OPENBLAS_L2_SIZE", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    found = environment(CPU)
    assert found["slowing_variables"] == ["OPENBLAS_CORETYPE"]
    assert found["quiet_threads"] is False
    assert found["versions"]["torch"]
    assert found["device"]
    assert found["threads"] == torch.get_num_threads()
