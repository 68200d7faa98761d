"""Trainings that start in no time: forked from a process that has imported torch, not by torchrun."""

from __future__ import annotations

import multiprocessing
import random
import socket
import subprocess
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import recorder
import training
from training import RECORDER

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["pytest", "torch._dynamo", "torch.utils.tensorboard", "tensorboardX", "brpg_lib.adapters.plugin"]
)


def _port() -> int:
    """One that no other training here gets, and that the system gives to nobody: below those of clients."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue


def launch(
    command: list[str], *, cwd: Path, env: dict[str, str], timeout: float, **_: Any
) -> subprocess.CompletedProcess[str]:
    """Does what torchrun does, seconds faster: each process is forked from one that has imported torch."""
    start = command.index(str(RECORDER))
    processes, arguments = int(command[start - 1].split("=")[1]), command[start + 1 :]
    log = Path(arguments[0]) / "log"
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port())}
    waiting = {}
    for rank in range(processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        process = FORKSERVER.Process(target=recorder.forked, args=(log, cwd, env | address | ranks, arguments))
        process.start()
        waiting[process.sentinel] = process
    status = 0
    while waiting:
        ended = connection.wait(waiting, timeout)
        for process in [waiting.pop(sentinel) for sentinel in ended]:
            process.join()
            status = status or process.exitcode
        if status or not ended:
            for process in waiting.values():
                process.kill()
    return subprocess.CompletedProcess(command, status, log.read_text(), "")


@pytest.fixture(scope="module")
def forking_on_the_cpu() -> Iterator[None]:
    """Trainings are forked, from a process without threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(training, "subprocess", SimpleNamespace(run=launch))
        yield
