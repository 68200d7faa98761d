"""Starting patched scripts: launchers, search paths, and paths of all kinds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from brpg_lib.adapters.launch import launcher_of, native, package_of, start_line
from brpg_lib.cli import main

STANDIN = Path(__file__).parents[1] / "standins/unimatch"
TELL = """
import sys
print(__name__, sys.argv[1:], os.getcwd(), os.environ.get("RANK"), os.environ.get("PYTHONPATH"), flush=True)
"""
RANKS = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose fixmatch.py tells how it was started, instead of training."""
    folder = Path(shutil.copytree(STANDIN, tmp_path / "my clone"))
    script = folder / "fixmatch.py"
    script.write_text(script.read_text().replace('if __name__ == "__main__":\n    main()', TELL))
    return folder


def brpg(*arguments: object, **environment: str) -> str:
    command = [sys.executable, "-m", "brpg_lib.cli", *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_search_path_is_extended_under_torchrun(checkout: Path) -> None:
    told = brpg("run", "unimatch", checkout / "fixmatch.py", "--", "-x", PYTHONPATH="elsewhere")
    assert told == f"__main__ ['-x'] {checkout} 0 elsewhere\n"


@pytest.mark.parametrize("started", [RANKS, {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}])
def test_within_a_launcher_nothing_else_is_launched(started: dict[str, str], checkout: Path) -> None:
    link = checkout.parent / "link"
    link.symlink_to(checkout)
    told = brpg("run", "unimatch", link / "fixmatch.py", "--", "-x", PYTHONPATH="", **started)
    assert told == f"__main__ ['-x'] {checkout} {started.get('RANK')} \n"


def test_launchers() -> None:
    assert launcher_of(RANKS) == "torchrun"
    assert launcher_of({"SLURM_STEP_NUM_TASKS": "8"}) == "SLURM"
    for alone in ({}, {"SLURM_JOB_ID": "3", "SLURM_NTASKS": "8"}, {"SLURM_STEP_NUM_TASKS": "1"}, {"RANK": "0"}):
        assert launcher_of(alone) == ""


def test_a_launcher_decides_the_number_of_processes(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "unimatch", str(checkout), "--nproc-per-node", "2"]) == 2
    assert "--nproc-per-node: expected none within torchrun" in capsys.readouterr().err


@pytest.mark.slow
def test_the_printed_line_starts_it_with_the_search_path_that_was_there(checkout: Path, tmp_path: Path) -> None:
    target = tmp_path / "its copy.py"
    printed = brpg("patch", "unimatch", checkout / "fixmatch.py", "--output", target).splitlines()[-2]
    line = printed.split("--config")[0].replace("torchrun", f"{sys.executable} -m torch.distributed.run")
    environment = os.environ | {"PYTHONPATH": "elsewhere"}
    done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"__main__ [] {checkout} 0 .:elsewhere\n", done.stderr


def test_scripts_of_a_package(tmp_path: Path) -> None:
    folder = tmp_path / "own/tools"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    assert package_of(folder / "train.py") == (tmp_path, "own.tools")
    line = start_line(folder / "train.py", folder / "train_brpg.py", folder, "--lr 1", 2, windows=False)
    assert line == f"cd {tmp_path} && torchrun --nproc_per_node=2 -m own.tools.train_brpg --lr 1"


@pytest.mark.slow
def test_relative_imports_within_a_package(checkout: Path) -> None:
    (checkout / "__init__.py").touch()
    package = checkout.rename(checkout.with_name("clone"))
    script = package / "fixmatch.py"
    script.write_text(script.read_text() + "from .util.classes import CLASSES as same\nprint(same is not None)\n")
    assert brpg("run", "unimatch", script, "--", "-x").endswith("True\n")


def test_paths_of_windows(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/train.py").touch()
    assert native(Path(f"{tmp_path}\\folder\\train.py")) == tmp_path / "folder/train.py"
    assert native(Path("C:\\gone.py")) == Path("C:\\gone.py")
    script, target = tmp_path / "my clone/train.py", tmp_path / "other/train.py"
    line = start_line(script, target, script.parent, "--lr 1", 1, windows=True)
    folder, search, start = line.split(" && ")
    assert folder == f'cd /d "{script.parent}"'
    assert search == 'set "PYTHONPATH=.;%PYTHONPATH%"'
    assert start == "torchrun --nproc_per_node=1 ../other/train.py --lr 1"
