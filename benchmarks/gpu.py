"""A quarter of an hour of a GPU, well spent: is the CUDA path right, how fast is it, and does the head help?

Run it from a checkout; nothing needs to be installed or downloaded there. Each part has its own time limit, and what it
found is written at once. A part that was cut off goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from brpg_lib.benchmarks import command
from brpg_lib.benchmarks.accuracy import HEAD
from brpg_lib.benchmarks.accuracy_rows import BASELINE
from brpg_lib.benchmarks.measure import environment
from brpg_lib.benchmarks.tables import Table
from brpg_lib.examples.training.networks.efficientnet import VARIABLE
from brpg_lib.files import write_atomically

STATE = "state.json"
DONE, FAILED, CUT = "done", "failed", "out of time"
GRACE = 5.0
"""Seconds between asking a process to end and ending it."""
CORRECTNESS, BENCHMARKS = 180.0, 240.0
"""Seconds, at most, of the first two groups; the sweep has the rest."""
SHARES = {"clustering": 0.3, "step": 0.25, "training_overhead": 0.3, "growth": 0.15}
EXTRA = {"step": ["--compile"], "training_overhead": ["--amp"]}
PARTS = ("correctness", *SHARES, "accuracy")
LEAST = 20.0
"""Seconds that a part needs to be worth starting."""


@dataclass(frozen=True)
class Part:
    """One program of the list.

    Attributes:
        name: Of its log, ``NAME.log``, and in the state.
        arguments: Of the Python interpreter.
        seconds: Its time limit.
    """

    name: str
    arguments: list[str]
    seconds: float


def parts_of(arguments: argparse.Namespace) -> list[Part]:
    """The parts, in order of worth."""
    out, device = arguments.out, arguments.device
    tests = ["-m", "pytest", "-q", "-m", "cuda", f"--junitxml={out / 'correctness.xml'}", *arguments.tests]
    parts = [Part("correctness", tests, CORRECTNESS)]
    for name, share in SHARES.items():
        options = ["--tiny"] if arguments.quick else ["--quick"] if name == "growth" else EXTRA.get(name, [])
        module = ["-m", f"brpg_lib.benchmarks.{name}", "--device", device, "--json", str(out / f"{name}.json")]
        parts.append(Part(name, [*module, *options], share * BENCHMARKS))
    if arguments.camvid is None:
        data = ["--data", "digits", "--size", "33", "--batch-size", "8"]
    else:
        splits = ["few_6_seed{seed}", "few_12_seed{seed}"][: 1 if arguments.quick else 2]
        data = ["--data", "camvid", "--root", str(arguments.camvid), "--splits", *splits, "--batch-size", "8",
                "--learning-rate", "1e-3", "--network", "efficientnet_lite0", "--pretrained",
                "--feature-dim", "64"]  # fmt: skip
    amount = ["--seeds", "0", "--steps", "4", "--frameworks", "mean_teacher"] if arguments.quick else []
    sweep = ["-m", "brpg_lib.benchmarks.accuracy", "--device", device, "--out", str(out / "accuracy"),
             "--jobs", str(arguments.jobs), "--variants", BASELINE, HEAD, *data, *amount]  # fmt: skip
    parts.append(Part("accuracy", sweep, float("inf")))
    return [part for part in parts if part.name in arguments.parts]


def perform(part: Part, seconds: float, out: Path, variables: dict[str, str]) -> dict[str, Any]:
    """Run a part, with all the processes it starts, for so long at most; its output goes to its log.

    Returns:
        ``status``, ``seconds`` and the exit ``code``, if there is one.
    """
    started = time.monotonic()
    with (out / f"{part.name}.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, *part.arguments], stdout=log, stderr=subprocess.STDOUT, env=os.environ | variables,
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    status = CUT if code is None else DONE if code == 0 else FAILED
    return {"status": status, "seconds": round(time.monotonic() - started, 1), "code": code}


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: asked first, then forced."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            if sign == signal.SIGTERM and alive(process.pid):
                time.sleep(GRACE / 10)


def alive(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All parts that are not done yet, in the time there is; the state is written after each."""
    deadline = time.monotonic() + 60 * arguments.minutes
    path = arguments.out / STATE
    variables = {"PYTHONUNBUFFERED": "1"}
    if arguments.weights is not None:
        variables[VARIABLE] = str(arguments.weights.resolve())
    state: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"parts": {}}
    state["environment"] = environment(torch.device(arguments.device))
    state["rehearsal"] = arguments.quick or arguments.device != "cuda"
    for part in parts_of(arguments):
        left = deadline - time.monotonic() - 2 * GRACE
        if state["parts"].get(part.name, {}).get("status") == DONE:
            console.print(f"{part.name}: done before")
            continue
        if left < LEAST:
            console.print(f"{part.name}: not started, {max(0, left):.0f} s are left")
            continue
        with console.status(f"{part.name} (at most {min(part.seconds, left):.0f} s)"):
            state["parts"][part.name] = perform(part, min(part.seconds, left), arguments.out, variables)
        write_atomically(json.dumps(state, indent=2) + "\n", path)
        found = state["parts"][part.name]
        console.print(f"{part.name}: {found['status']} after {found['seconds']:.0f} s")
    return state


def table(state: dict[str, Any], out: Path) -> Table:
    """What became of each part."""
    made = Table(f"On {state['environment']['device']}", ("part", "status", "seconds", "log"))
    for name, found in state["parts"].items():
        made.rows.append([name, found["status"], f"{found['seconds']:.0f}", str(out / f"{name}.log")])
    if state["rehearsal"]:
        made.notes.append("A rehearsal: these numbers say nothing of a GPU.")
    return made


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=14.0, help="for all of it (default: %(default)s)")
    p.add_argument("--camvid", type=Path, metavar="DIR", help="CamVid for the sweep (default: digit scenes)")
    p.add_argument(
        "--weights", type=Path, metavar="FILE", help="of EfficientNet-Lite0, if its package is not installed"
    )
    p.add_argument("--jobs", type=int, default=3, help="trainings at the same time (default: %(default)s)")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu for a rehearsal")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="NAME",
                   help=f"among {', '.join(PARTS)} (default: all)")  # fmt: skip
    p.add_argument("--quick", action="store_true", help="a rehearsal with the smallest sizes")
    p.add_argument("--tests", nargs="+", default=["tests"], metavar="PATH", help="(default: %(default)s)")
    p.add_argument("--out", type=Path, default=Path("runs/gpu"), metavar="DIR", help="(default: %(default)s)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts.

    Returns:
        Exit status: 0 if all are done, 1 if one failed or was cut off, 2 for wrong usage, 130 for an interruption.
    """
    arguments = parser().parse_args(argv)
    console = Console()
    problem = problem_of(arguments)
    if problem is not None:
        print(f"gpu: {problem}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        state = run(arguments, console)
    except KeyboardInterrupt:
        print("gpu: interrupted; the same command goes on", file=sys.stderr)
        return 130
    console.print(table(state, arguments.out).rich())
    console.print(f"results: {arguments.out}")
    names = [part.name for part in parts_of(arguments)]
    return 0 if all(state["parts"].get(name, {}).get("status") == DONE for name in names) else 1


def problem_of(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the options, in one line."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        return "--device: there is no CUDA device that torch can use; --device cpu --quick rehearses without one"
    if not 0 < arguments.minutes < float("inf"):
        return f"--minutes: expected a positive number, found {arguments.minutes}"
    if arguments.jobs < 1:
        return f"--jobs: expected at least 1, found {arguments.jobs}"
    for name in ("camvid", "weights"):
        path = getattr(arguments, name)
        if path is not None and not path.exists():
            return f"--{name}: {path} is not there"
    return None


if __name__ == "__main__":
    command.with_quiet_threads()
    sys.exit(main())
