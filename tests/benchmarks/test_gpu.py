"""The script for a quarter of an hour of a GPU: its time limits, its state, and a rehearsal without a GPU."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pytest
import torch

from brpg_lib.benchmarks import gpu


def part(code: str, seconds: float = 60.0, name: str = "part") -> gpu.Part:
    return gpu.Part(name, ["-c", code], seconds)


def test_status_of_a_part(tmp_path: Path) -> None:
    found = gpu.perform(part("print('seen')"), 60, tmp_path, {})
    assert (found["status"], found["code"]) == (gpu.DONE, 0)
    assert (tmp_path / "part.log").read_text() == "seen\n"
    found = gpu.perform(part("raise SystemExit(3)"), 60, tmp_path, {})
    assert (found["status"], found["code"]) == (gpu.FAILED, 3)
    found = gpu.perform(part("import os; print(os.environ['HERE'])"), 60, tmp_path, {"HERE": "variable"})
    assert (tmp_path / "part.log").read_text() == "seen\nvariable\n", "appended"


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('child', flush=True); time.sleep(99)"
child = subprocess.Popen([sys.executable, "-c", code])
print(child.pid, flush=True)
time.sleep(99)
"""


def test_a_part_out_of_time_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    started = time.monotonic()
    found = gpu.perform(part(STUBBORN), 2.0, tmp_path, {})
    assert found["status"] == gpu.CUT
    assert time.monotonic() - started < 10
    log = (tmp_path / "part.log").read_text().split()
    assert "child" in log
    child = next(int(word) for word in log if word.isdigit())
    state = Path(f"/proc/{child}/stat")
    deadline = time.monotonic() + 5
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def options(out: Path, **changes: object) -> argparse.Namespace:
    arguments = gpu.parser().parse_args(["--device", "cpu", "--quick", "--out", str(out)])
    vars(arguments).update(changes)
    out.mkdir(exist_ok=True)
    return arguments


def test_goes_on_with_what_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(gpu, "parts_of", lambda _: [part("", name=n) for n in ("first", "second", "third")])

    def perform(part: gpu.Part, seconds: float, out: Path, variables: dict[str, str]) -> dict[str, object]:
        ran.append(part.name)
        status = gpu.CUT if part.name == "second" and len(ran) < 3 else gpu.DONE
        return {"status": status, "seconds": 1.0, "code": None}

    monkeypatch.setattr(gpu, "perform", perform)
    console = gpu.Console(quiet=True)
    gpu.run(options(tmp_path), console)
    state = json.loads((tmp_path / gpu.STATE).read_text())
    assert {name: found["status"] for name, found in state["parts"].items()} == {
        "first": gpu.DONE, "second": gpu.CUT, "third": gpu.DONE,
    }  # fmt: skip
    assert state["rehearsal"]
    ran[:] = ["", "", ""]
    gpu.run(options(tmp_path), console)
    assert ran[3:] == ["second"]


def test_nothing_starts_without_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "perform", lambda *_: pytest.fail("started"))
    assert gpu.run(options(tmp_path, minutes=0.1), gpu.Console(quiet=True))["parts"] == {}


def test_groups_have_their_limits(tmp_path: Path) -> None:
    parts = {p.name: p for p in gpu.parts_of(options(tmp_path, quick=False, device="cuda"))}
    assert parts["correctness"].seconds <= 180
    assert sum(parts[name].seconds for name in gpu.SHARES) == pytest.approx(240)
    assert list(parts)[-1] == "accuracy"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param([], "no CUDA device", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")),
        (["--device", "cpu", "--minutes", "0"], "--minutes: expected a positive number, found 0.0"),
        (["--device", "cpu", "--minutes", "nan"], "--minutes"),
        (["--device", "cpu", "--jobs", "0"], "--jobs: expected at least 1, found 0"),
        (["--device", "cpu", "--camvid", "/nowhere"], "--camvid: /nowhere is not there"),
        (["--device", "cpu", "--weights", "/nowhere"], "--weights: /nowhere is not there"),
    ],
)
def test_wrong_usage(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("parts", [("correctness", "growth"), pytest.param(gpu.PARTS, marks=pytest.mark.slow)])
def test_a_rehearsal(tmp_path: Path, parts: tuple[str, ...]) -> None:
    tests = str(Path(__file__).parent.parent / "test_precision.py")
    argv = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--jobs", "1", "--tests", tests, "--parts", *parts]
    code = gpu.main(argv)
    state = json.loads((tmp_path / gpu.STATE).read_text())
    logs = {path.name: path.read_text()[-2000:] for path in tmp_path.glob("*.log")}
    assert code == 0, (state, logs)
    assert tuple(state["parts"]) == parts
    assert state["rehearsal"]
    assert all((tmp_path / f"{name}.json").is_file() for name in gpu.SHARES if name in parts)
    assert ("accuracy" in parts) == bool(list((tmp_path / "accuracy").glob("*.json")))
    assert 'errors="0"' in (tmp_path / "correctness.xml").read_text()
