"""Trains a patched or unpatched script of a checkout in processes of its own, and tells what happened."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from builders import same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from brpg_lib.adapters.launch import extended_path
from brpg_lib.adapters.patching.family import Family
from brpg_lib.adapters.registry import FRAMEWORKS
from brpg_lib.examples.checkouts import BRPG, WORKSPACES, write_patched
from brpg_lib.examples.made_up import Workspace

PATCHING = threading.Lock()
"""Python 3.11 cannot parse in two threads at once."""
RECORDER = Path(__file__).with_name("recorder.py")
ALL = [(framework.name, script) for framework in FRAMEWORKS.values() for script in framework.scripts]
RESUMING = [pair for pair in ALL if FRAMEWORKS[pair[0]].resumes]
LASTING = [pair for pair in ALL if pair not in RESUMING]
"""The scripts that can be patched, with the framework they belong to; those that resume, and those that do not."""
BY_CONTENT = [pair for pair in ALL if isinstance(FRAMEWORKS[pair[0]], Family)]
"""Those that are known by what they do."""
RARE = {
    r"(?<!max\(1, )len\(trainloader_u\) // 8": "max(1, len(trainloader_u) // 8)",
    r"iter_num % (200|3000)\b": "iter_num % 20",
    r"\(epoch ?\+ ?1\) % 4\b": "(epoch+1) % 1",
}
"""What upstream does in long trainings only, and how it happens in short ones."""


def once(received: Sequence[float]) -> bool:
    """Whether a loss got one gradient in a step: 1, or the scale of mixed precision."""
    return len(received) == 1 and math.log2(received[0]).is_integer()


def own(run: Run) -> list[dict[str, Any]]:
    """Contents of the script's files and its scalars, without the plug-in's and without times."""
    mine = (run.saved(), run.scalars())
    return [{name: found[name] for name in found if not re.search("brpg|time", name)} for found in mine]


def assert_trains_as_unpatched(run: Run, unpatched: Run) -> None:
    """The script's files and scalars are equal, bit for bit, but for what the plug-in adds to them."""
    (files, scalars), (expected, logged) = own(run), own(unpatched)
    assert len(expected) >= 1
    assert expected.keys() == files.keys()
    for name, state in expected.items():
        assert same(state, files[name]), name
    assert scalars == logged


@dataclass
class Run:
    """One training.

    Attributes:
        returncode: Of the launcher.
        log: What all processes printed.
        calls: The plug-in's calls, for each rank.
        workspace: Where it ran.
    """

    returncode: int
    log: str
    workspace: Workspace
    calls: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def results(self) -> Path:
        """Where it saves; one script of SSL4MIS leaves a word out of the folder's name."""
        folder = self.workspace.checkpoint.parent
        shorter = folder.parents[0].with_name(folder.parents[0].name.removesuffix("_labeled")) / folder.name
        return shorter if shorter.is_dir() and not folder.is_dir() else folder

    def saved(self) -> dict[str, Any]:
        """Contents of all files that the script and the plug-in saved, by name."""
        files = sorted(self.results.rglob("*.pth"))
        return {file.name: torch.load(file, weights_only=False) for file in files}

    def scalars(self) -> dict[str, dict[int, float]]:
        """Values at each step, by tag; of a script that logs none, none."""
        found = {}
        for root in (self.workspace.folder, self.results):
            for folder in sorted({file.parent for file in root.rglob("events.out*")}):
                events = EventAccumulator(str(folder)).Reload()
                tags = events.Tags()["scalars"]
                found |= {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}
        return found

    def phases(self, rank: int = 0) -> list[str]:
        """Phase of each call."""
        return [call["phase"] for call in self.calls[rank]]


def train(
    framework: str,
    script: str,
    checkout: Path,
    folder: Path,
    *,
    patched: bool = True,
    processes: int = 1,
    epochs: int = 3,
    brpg: dict[str, Any] | None = None,
    kill_at: int = -1,
    fixes: Sequence[str] = ("short-epochs",),
    name: str = "run",
) -> Run:
    """Train in ``folder``; a second call there resumes.

    Args:
        framework: Name of the framework.
        script: File name of the script.
        checkout: The upstream checkout, or a stand-in.
        folder: Workspace.
        patched: Whether to patch the script first; either way what happens rarely in it happens early.
        processes: Number of ranks.
        epochs: Epochs of the whole training.
        brpg: The yaml's section; None for one that suits tiny images.
        kill_at: Iteration in which all ranks kill themselves; -1 for never.
        fixes: Upstream bugs to repair in the patched script, as far as it has them.
        name: Names the records of this run.
    """
    workspace = WORKSPACES[framework](checkout, folder, epochs, BRPG if brpg is None else brpg)
    arguments = list(workspace.arguments)
    if patched:
        with PATCHING:
            target = write_patched(framework, script, checkout, workspace.folder, fixes)
    else:
        arguments = [argument for argument in arguments if not argument.startswith("--brpg")]
        target = workspace.folder / script
        target.write_text((checkout / script).read_text())
    for rare, often in RARE.items():
        target.write_text(re.sub(rare, often, target.read_text()))
    records = folder / name
    records.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(RECORDER), str(records), str(kill_at), str(target), *arguments]
    environment = os.environ | {
        "PYTHONPATH": extended_path(checkout),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=workspace.folder, env=environment, capture_output=True, text=True, timeout=900)
    calls = [
        [json.loads(line) for line in (records / f"{rank}.jsonl").read_text().splitlines()]
        for rank in range(processes)
        if (records / f"{rank}.jsonl").exists()
    ]
    return Run(done.returncode, done.stdout + done.stderr, workspace, calls)
