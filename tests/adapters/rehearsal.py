"""Runs a patched script in this process, on the CPU, and tells what its head received."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from brpg_lib.adapters import plugin
from brpg_lib.adapters.plugin import Plugin
from brpg_lib.examples.checkouts import BRPG, WORKSPACES, Workspace
from brpg_lib.examples.without_cuda import _DistributedDataParallel, _SyncBatchNorm

EPOCHS = 2
SECTION = BRPG | {
    "feature_dim": 16,
    "warmup": 0.25,
    "collect": 0.5,
    "samples_per_image": 50,
    "queue_size": 50,
    "grid_size": 8,
}
FIELDS = ("features", "logits", "labels", "pseudo_labels", "confidence", "weak_features", "weak_logits", "weak_valid")
Received = list[dict[str, Any]]


def workspace(framework: str, checkout: Path, folder: Path, epochs: int = EPOCHS) -> Workspace:
    """A folder to train in; U2PL's representations have the width they have."""
    section = {key: value for key, value in SECTION.items() if framework != "u2pl" or key != "feature_dim"}
    return WORKSPACES[framework](checkout, folder, epochs, section)


def rehearse(source: str, checkout: Path, place: Workspace) -> Received:
    """What each call of the head received: the step, and fingerprints of all maps.

    Args:
        source: A patched script.
        checkout: Where the modules lie that it imports.
        place: Where it trains.
    """
    received: Received = []

    def forward(self: Plugin, labeled: Any, unlabeled: Any = None, *, iteration: int) -> Tensor:
        parts = {f"labeled.{name}": _digest(getattr(labeled, name, None)) for name in FIELDS}
        parts |= {f"unlabeled.{name}": _digest(getattr(unlabeled, name, None)) for name in FIELDS}
        received.append({"iteration": iteration} | parts)
        return plugin_forward(self, labeled, unlabeled, iteration=iteration)

    plugin_forward = Plugin.forward
    for file in place.checkpoint.parent.glob("*"):
        if file.is_file():
            file.unlink()
    with _as_a_script(checkout, place), patch.object(plugin.Plugin, "forward", forward):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        exec(compile(source, "mutant.py", "exec"), {"__name__": "__main__", "__file__": "mutant.py"})
    return received


def _digest(value: Tensor | None) -> str | None:
    if value is None:
        return None
    data = value.detach().float().contiguous().numpy().tobytes()
    return f"{tuple(value.shape)} {hashlib.sha256(data).hexdigest()[:12]}"


@contextmanager
def _as_a_script(checkout: Path, place: Workspace) -> Iterator[None]:
    """One process of one, without CUDA, in the workspace, with the checkout's modules and none of another's."""

    def itself(x: Any, *args: Any, **kwargs: Any) -> Any:
        return x

    before, folder = set(sys.modules), Path.cwd()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    init = dist.init_process_group
    patches = [
        *(patch.object(owner, "cuda", itself) for owner in (torch.Tensor, nn.Module)),
        patch.object(torch.cuda, "device_count", lambda: 1),
        patch.object(torch.cuda, "is_available", lambda: False),  # which may ask for the number of devices
        patch.object(torch.cuda, "set_device", itself),
        patch.object(dist, "init_process_group", lambda backend=None, *args, **kwargs: init("gloo", *args, **kwargs)),
        patch.object(nn.parallel, "DistributedDataParallel", _DistributedDataParallel),
        patch.object(nn, "SyncBatchNorm", _SyncBatchNorm),
        patch.object(sys, "path", [str(checkout), *sys.path]),
        patch.object(sys, "argv", ["mutant.py", *place.arguments]),
        patch.dict(os.environ, ranks),
    ]
    for one in patches:
        one.start()
    os.chdir(place.folder)
    try:
        yield
    finally:
        os.chdir(folder)
        for one in patches:
            one.stop()
        if dist.is_initialized():
            dist.destroy_process_group()
        for name in set(sys.modules) - before:
            root = name.split(".")[0]
            if (checkout / root).is_dir() or (checkout / f"{root}.py").is_file():
                del sys.modules[name]
