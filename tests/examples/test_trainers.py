"""Each trainer example learns prototypes; those with checkpoints resume exactly, and their ranks agree."""

from __future__ import annotations

import importlib
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from builders import same
from packages import needs_transformers

from brpg_lib import PrototypeHead
from brpg_lib.checkpoint import unpack

LINE = re.compile(r"step +(\d+)  (\w+) +loss (\S+)  prototype (\S+)")
NEEDS = {
    "segformer": "transformers",
    "smp_unet": "segmentation_models_pytorch",
    "accelerate_trainer": "accelerate",
    "lightning_module": "lightning",
}

RANK = """
import importlib, os, pathlib, sys, torch
example, folder, options = importlib.import_module(sys.argv[1]), pathlib.Path(sys.argv[2]), eval(sys.argv[3])
torch.set_num_threads(1)
example.STEPS = 4
torch.save(example.train(folder, **options).state_dict(), folder / f"rank{os.environ['RANK']}.pt")
"""


@pytest.fixture(autouse=True)
def keep_random_state():
    with torch.random.fork_rng():
        yield


def example(name: str) -> ModuleType:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    return importlib.import_module(f"brpg_lib.examples.{name}")


def check_output(text: str) -> None:
    lines = LINE.findall(text)
    assert list(dict.fromkeys(phase for _, phase, _, _ in lines)) == ["warmup", "collect", "learn"]
    assert all(math.isfinite(float(loss)) for _, _, loss, _ in lines)
    for _, phase, _, prototype in lines:
        assert (float(prototype) > 0) == (phase == "learn")
    found = re.search(r"^(\d+) prototypes, of (\d+) of 11 classes$", text, flags=re.MULTILINE)
    assert found is not None
    assert int(found[1]) >= int(found[2]) >= 2


def same_state(one: PrototypeHead, two: PrototypeHead) -> bool:
    return same(one.state_dict(), two.state_dict())


@pytest.mark.parametrize(
    ("name", "steps"), [("own_trainer", 50), pytest.param("segformer", 50, marks=needs_transformers), ("smp_unet", 30)]
)
def test_plain_loop(name: str, steps: int, capsys: pytest.CaptureFixture[str]) -> None:
    example(name).main(["--steps", str(steps)])
    check_output(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["accelerate_trainer", "lightning_module"])
def test_resume_equals_uninterrupted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = example(name)
    monkeypatch.setattr(trainer, "STEPS", 4)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    whole = trainer.train(tmp_path / "whole")
    check_output(capsys.readouterr().out)
    trainer.main(["--folder", str(tmp_path / "cut"), "--stop", "5"])  # in the middle of the collect phase
    torch.rand(3)
    resumed = trainer.train(tmp_path / "cut", resume=True)
    assert [int(step) for step, *_ in LINE.findall(capsys.readouterr().out)] == [4 * epoch for epoch in range(1, 9)]
    assert same_state(whole, resumed)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("accelerate_trainer", {}),
        pytest.param("lightning_module", {"devices": 2}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_agree(name: str, options: dict[str, int], tmp_path: Path) -> None:
    trainer = example(name)
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [trainer.__name__, str(tmp_path), repr(options)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*torchrun, script, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    check_output(done.stdout)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert unpack(one["_extra_state"])["iteration"] == trainer.EPOCHS * 2  # half of the 4 steps are the other rank's
    assert one["bank.mask"].any()
    assert same(one, two)
