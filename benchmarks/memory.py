"""Peak memory of a piece of work above the level before it."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def extra_memory(device: torch.device, run: Callable[[], object]) -> int | None:
    """Bytes by which a run's peak exceeds the level before: allocated by torch on CUDA, resident on the CPU.

    ``None`` where the system does not tell (it is Linux that does).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        # What was freed goes back to the system, or the run would use it unseen. Only glibc can.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        before, (result, peak) = resident("VmRSS"), resident_peak(run)
    del result
    return max(0, peak - before) if peak else None


def resident_peak(run: Callable[[], object]) -> tuple[object, int]:
    """Result of a run, and the peak of this process's resident memory in bytes during it."""
    try:
        CLEAR.write_text("5")  # sets the peak to what is resident now
    except OSError:
        return sampled_peak(run)
    return run(), resident("VmHWM")


def sampled_peak(run: Callable[[], object], interval: float = 0.001) -> tuple[object, int]:
    """The same where the peak cannot be reset: by looking often, which may miss the very top."""
    peak, done = resident("VmRSS"), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(interval):
            peak = max(peak, resident("VmRSS"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        result = run()
    finally:
        done.set()
        watcher.join()
    return result, max(peak, resident("VmRSS"))


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process in bytes; 0 where the system does not tell."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0
