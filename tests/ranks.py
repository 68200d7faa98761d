"""Jobs on several processes of this machine that talk by gloo, and what they saved."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from brpg_lib.examples.training.processes import free_port

PRELOADED = [
    "torch",
    "torch._dynamo",  # which the first optimizer would import
    "torch.distributed",
    "brpg_lib",
    "brpg_lib.kernels.lloyd.numba_lloyd",
    "brpg_lib.kernels.taps.numba_taps",
    "builders",
]
os.environ.setdefault(
    "TORCHINDUCTOR_COMPILE_THREADS", "1"
)  # or importing torch._dynamo may start threads, before forking
Job = Callable[..., None]
"""``job(index, ranks, folder, *arguments)``."""


def context() -> Any:
    """Processes that start fast: forked off one that has imported everything, and done nothing yet."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def member(job: Job, index: int, ranks: int, folder: Path, port: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{port}",
            rank=index,
            world_size=ranks,
            timeout=datetime.timedelta(seconds=60),
        )
    job(index, ranks, folder, *arguments)
    if ranks > 1:
        dist.barrier()
        os._exit(0)  # in torch 2.4, destroying the process group may hang


def start(job: Job, ranks: int, folder: Path, *arguments: Any) -> list[BaseProcess]:
    """Start a job on all ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = [
        context().Process(target=member, args=(job, index, ranks, folder, port, arguments)) for index in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Wait for a job; exit codes, ``None`` for a rank that was still busy and had to be killed."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    kill(processes)
    return codes


def kill(processes: list[BaseProcess]) -> None:
    """End all ranks at once, wherever they are."""
    for process in processes:
        if process.pid is not None and process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join()


def on_ranks(job: Job, ranks: int, folder: Path, *arguments: Any, seconds: float = 120) -> list[dict[str, Any]]:
    """Run a job that saves ``INDEX.pt`` on each rank; what each one saved."""
    codes = finish(start(job, ranks, folder, *arguments), seconds)
    assert codes == [0] * ranks, codes
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(ranks)]
