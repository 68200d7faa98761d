"""Fair timings: contenders take turns in one process, so that noise hits all alike."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from brpg_lib.benchmarks.memory import extra_memory

SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables that choose slower kernels for NumPy, scikit-learn and faiss."""
QUIET = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}
"""Torch, scikit-learn and faiss each bring a pool of threads; those that wait spinning slow the others down."""
PACKAGES = (
    *("torch", "torchvision", "triton", "numba", "numpy", "scikit-learn"),
    *("faiss-cpu", "flash-kmeans", "fastkmeans", "fast-pytorch-kmeans"),
)


class Clock:
    """Times one run, in parts if the run marks them; on CUDA, the work on the device, without waiting in between."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.running = device, True
        self.marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        """Start anew: what came before was preparation."""
        self.marks.clear()
        self.running = True
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.lap("start")

    def lap(self, name: str) -> None:
        """Mark the end of a part."""
        if not self.running:
            return
        mark: Any = time.perf_counter()
        if self.device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        self.marks.append((name, mark))

    def stop(self) -> None:
        """What follows is tidying up."""
        self.running = False

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, and of all together as ``total``; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        parts: dict[str, float] = {}
        for (_, before), (name, after) in zip(self.marks, self.marks[1:], strict=False):
            spent = after - before if isinstance(after, float) else before.elapsed_time(after) / 1000
            parts[name] = parts.get(name, 0.0) + spent
        return parts | {"total": sum(parts.values())}


Run = Callable[[Clock], Any]
"""What is timed. It may call ``clock.start()`` once prepared, ``clock.lap(name)`` after each part, ``clock.stop()``."""


@dataclass
class Timing:
    """What a contender took, or why it did not run.

    Attributes:
        runs: Seconds of every timed run, by part.
        extra_bytes: Peak memory above the level before the run, or None if not measured.
        result: What the last run returned.
        failure: One line, or None.
    """

    runs: list[dict[str, float]] = field(default_factory=list)
    extra_bytes: int | None = None
    result: Any = None
    failure: str | None = None

    def median(self, part: str = "total") -> float:
        """Median seconds of a part."""
        return statistics.median(run[part] for run in self.runs)

    def summary(self) -> dict[str, Any]:
        """Plain types for JSON."""
        if self.failure is not None:
            return {"failure": self.failure}
        totals = [run["total"] for run in self.runs]
        return {
            "seconds": self.median(),
            "fastest": min(totals),
            "slowest": max(totals),
            "parts": {part: self.median(part) for part in self.runs[0] if part not in ("total", "end")},
            "extra_bytes": self.extra_bytes,
        }


def race(
    contenders: Mapping[str, Run],
    device: torch.device,
    repeats: int,
    progress: Callable[[str], None] = lambda _: None,
    warm_up: Mapping[str, Run] | None = None,
    memory: bool = True,
    lead_in: bool = False,
) -> dict[str, Timing]:
    """Time contenders in turn, ``repeats`` rounds of one run each.

    Before that each runs once for warming up, and once for its peak memory. One that raises is out, with its reason.

    Args:
        contenders: What to run.
        device: Where it runs.
        repeats: Timed runs of each.
        progress: Told what is running.
        warm_up: Cheaper runs that compile and import the same, where the real ones are expensive.
        memory: Whether to measure memory.
        lead_in: Whether each timed run follows an untimed one of the same contender: for steps of a training, which
            follow each other. What another contender leaves in the caches and the heap would not be there.
    """
    timings = {name: Timing() for name in contenders}

    def attempt(name: str, stage: str, run: Callable[[], None]) -> None:
        if timings[name].failure is None:
            progress(f"{name}, {stage}")
            try:
                run()
            except Exception as error:
                timings[name].failure = one_line(error)

    def timed(name: str, run: Run) -> Any:
        clock = Clock(device)
        clock.start()
        result = run(clock)
        clock.lap("end")
        timings[name].runs.append(clock.seconds())
        return result

    def measured(name: str, run: Run) -> None:
        timings[name].extra_bytes = extra_memory(device, lambda: run(Clock(device)))

    def kept(name: str, run: Run) -> None:
        timings[name].result = None  # so that two results never take memory at once
        timings[name].result = timed(name, run)

    for name, run in (warm_up or contenders).items():
        attempt(name, "warming up", lambda name=name, run=run: timed(name, run))  # type: ignore[misc]
        timings[name].runs.clear()
    if memory:
        for name, run in contenders.items():
            attempt(name, "memory", lambda name=name, run=run: measured(name, run))  # type: ignore[misc]
    for turn in range(repeats):
        for name, run in contenders.items():
            if lead_in:
                attempt(name, f"run {turn + 1} of {repeats}, leading in", lambda run=run: run(Clock(device)))  # type: ignore[misc]
            attempt(name, f"run {turn + 1} of {repeats}", lambda name=name, run=run: kept(name, run))  # type: ignore[misc]
    return timings


def one_line(error: BaseException) -> str:
    """An exception as one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def environment(device: torch.device) -> dict[str, Any]:
    """Where and with what something was measured."""
    versions = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "versions": versions,
        "quiet_threads": quiet_threads(),
        "slowing_variables": [name for name in SLOWING if name in os.environ],
    }


def quiet_threads() -> bool:
    """Whether waiting threads sleep, as far as the environment says."""
    return all(os.environ.get(name, "").lower() == value for name, value in QUIET.items())


def processor() -> str:
    """Name of the processor, as good as the system knows it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
