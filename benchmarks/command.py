"""What the command lines of all benchmarks share."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console

from brpg_lib.benchmarks.measure import QUIET, environment, quiet_threads
from brpg_lib.benchmarks.presets import PRESETS, Preset

REPEATS = {"full": 5, "quick": 5, "tiny": 1}
Progress = Callable[[str], None]
Result = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        preset: Sizes, already scaled.
        size: One of :data:`~brpg_lib.benchmarks.presets.SIZES`.
        device: Where to run.
        repeats: Timed runs of each contender.
        compile: Whether to try ``torch.compile``.
        amp: Whether to train in bfloat16 where autocast allows it.
    """

    preset: Preset
    size: str
    device: torch.device
    repeats: int
    compile: bool = False
    amp: bool = False


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that all have."""
    p = argparse.ArgumentParser(prog=name, description=description)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    p.add_argument("--device", choices=("cpu", "cuda"), default=default, help="where to measure (default: %(default)s)")
    p.add_argument("--preset", choices=tuple(PRESETS), default="voc", help="sizes of a training (default: %(default)s)")
    size = p.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="small sizes, seconds each")
    size.add_argument("--tiny", dest="size", action="store_const", const="tiny", help="sizes for tests, no evidence")
    p.add_argument("--repeats", type=int, metavar="N", help="timed runs of each contender (default: 5)")
    p.add_argument("--compile", action="store_true", help="step: also with torch.compile")
    p.add_argument("--amp", action="store_true", help="training_overhead: autocast to bfloat16")
    p.set_defaults(size="full")
    return p


def options_of(arguments: argparse.Namespace) -> Options:
    """Checked options.

    Raises:
        ValueError: The device is not there, or a number is out of range.
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: there is no CUDA device that torch can use")
    repeats = REPEATS[arguments.size] if arguments.repeats is None else arguments.repeats
    if repeats < 1:
        raise ValueError(f"--repeats: expected at least 1, found {repeats}")
    preset = PRESETS[arguments.preset].scaled(arguments.size)
    device = torch.device(arguments.device)
    return Options(preset, arguments.size, device, repeats, arguments.compile, arguments.amp)


def run(benchmark: ModuleType, argv: Sequence[str] | None) -> int:
    """Measure, print the tables, write the JSON.

    Args:
        benchmark: A module with ``measure(options, progress) -> Result`` and ``tables(result) -> list[Table]``.
        argv: The command line.

    Returns:
        Exit status: 0 for success, 2 for wrong usage.
    """
    name = Path(str(benchmark.__file__)).stem
    p = parser(name, benchmark.__doc__)
    p.add_argument("--json", type=Path, metavar="FILE", help="where to write all numbers")
    arguments = p.parse_args(argv)
    console = Console()
    try:
        options = options_of(arguments)
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    warn(console)
    with console.status(name) as status:
        result = complete(benchmark, options, lambda text: status.update(f"{name}: {text}"))
    for table in benchmark.tables(result):
        console.print(table.rich())
    console.print(origin(result), style="dim")
    if arguments.json is not None:
        write(result, arguments.json)
    return 0


def complete(benchmark: ModuleType, options: Options, progress: Progress) -> Result:
    """What was measured, and where, with what and on which sizes."""
    result: Result = benchmark.measure(options, progress)
    setup = {"preset": asdict(options.preset), "size": options.size, "repeats": options.repeats, "amp": options.amp}
    return {"environment": environment(options.device), "setup": setup} | result


def write(result: Result, path: Path) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def origin(result: Result) -> str:
    """One line that says where numbers come from."""
    where, setup = result["environment"], result["setup"]
    versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
    sizes = "" if setup["size"] == "full" else f" ({setup['size']} sizes)"
    return (
        f"{setup['preset']['name']}{sizes} on {where['device']}, {where['threads']} threads, "
        f"median of {setup['repeats']}, {where['date']}; {versions}"
    )


def warn(console: Console) -> None:
    """Say what in the surroundings distorts the comparison."""
    for text in warnings(environment(torch.device("cpu"))):
        console.print(f"Warning: {text}", style="bold red")


def warnings(where: dict[str, Any]) -> list[str]:
    """What distorted a comparison, made in an :func:`~brpg_lib.benchmarks.measure.environment`."""
    found = [
        f"{name} is set and slows NumPy, scikit-learn and faiss down, which flatters brpg-lib. Unset it."
        for name in where["slowing_variables"]
    ]
    if not where["quiet_threads"]:
        found.append(
            "thread pools that wait spinning for long slow each other down, "
            f"set {' '.join(f'{name}={value}' for name, value in QUIET.items())} before Python starts."
        )
    return found


def with_quiet_threads() -> None:
    """Start this program anew if its thread pools would wait spinning: they read the variable when they are loaded."""
    if not quiet_threads() and hasattr(os, "execve"):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | QUIET)
