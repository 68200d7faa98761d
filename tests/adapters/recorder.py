"""Runs a training script on the CPU and writes down what its plug-in does, call by call and rank by rank.

``recorder.py FOLDER KILL_AT SCRIPT ARGUMENTS...``: each rank appends one line of JSON per call to
``FOLDER/RANK.jsonl``, and kills itself without warning where iteration KILL_AT begins (-1: never).
"""

from __future__ import annotations

import collections
import collections.abc
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.dataloader import _BaseDataLoaderIter

from brpg_lib.adapters.plugin import Plugin
from brpg_lib.examples.without_cuda import run_script, stay_on_the_cpu


def digest(tensors: Iterable[Tensor]) -> str:
    """A fingerprint of the exact values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def state(plugin: Plugin) -> str:
    """A fingerprint of what must be equal on all ranks."""
    head = plugin.head
    return digest([head.bank.prototypes, head.bank.mask, head.queue.rows])


def record(plugin_forward: Any, folder: Path, kill_at: int) -> Any:
    received: list[float] = []  # gradients of the last step's loss

    def forward(self: Plugin, *args: Any, iteration: int, **kwargs: Any) -> Tensor:
        if iteration == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        learnable = list(self.projection.parameters()) if hasattr(self, "projection") else []
        line = {
            "iteration": iteration,
            "before": state(self),
            # what the script's last backward pass left, averaged by DDP
            "gradients": digest(p.grad for p in learnable if p.grad is not None),
            "moving": any(p.grad is not None and bool(p.grad.any()) for p in learnable),
            "weights": digest(learnable),
            "received": received.copy(),
        }
        received.clear()
        loss: Tensor = plugin_forward(self, *args, iteration=iteration, **kwargs)
        if loss.requires_grad:
            loss.register_hook(lambda grad: received.append(grad.item()))
        line |= {
            "weak": len(args) > 1 and args[1] is not None and args[1].weak_features is not None,
            "phase": self._phase.value if self._phase else None,
            "loss": loss.item(),
            "images": digest([args[0].features.detach(), args[0].labels]),
            "requires_grad": loss.requires_grad,
            "after": state(self),
            "prototypes": int(self.head.bank.mask.sum()),
            "rows": int(self.head.queue.rows.sum()),
        }
        with (folder / f"{os.environ['RANK']}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return loss

    return forward


def bring_back_old_names() -> None:
    """What U2PL, DDFP and BCP need to run unpatched; patched, they must do without."""
    sys.modules["asyncore"] = SimpleNamespace(write=None)  # type: ignore[assignment]
    collections.Iterable = collections.abc.Iterable  # type: ignore[attr-defined]
    _BaseDataLoaderIter.next = _BaseDataLoaderIter.__next__  # type: ignore[attr-defined]


def forked(log: Path, folder: Path, environment: dict[str, str], arguments: Sequence[str]) -> None:
    """Record in a process that was forked for it, as if this file were started afresh."""
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(folder)
    os.environ.update(environment)
    sys.path[:0] = ["", *environment["PYTHONPATH"].split(os.pathsep)]
    sys.argv[1:] = arguments
    main()


def main() -> None:
    folder, kill_at, script, *arguments = sys.argv[1:]
    rank = int(os.environ["RANK"])
    if not torch.cuda.is_available():
        stay_on_the_cpu()
        torch.set_num_threads(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(rank)
    if "brpg_lib" not in Path(script).read_text():
        bring_back_old_names()
    Plugin.forward = record(Plugin.forward, Path(folder), int(kill_at))  # type: ignore[method-assign]
    run_script(script, arguments)


if __name__ == "__main__":
    main()
