"""Starts patched scripts: with torchrun, inside processes that torchrun or SLURM started, and the line to do so."""

from __future__ import annotations

import json
import linecache
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

CHILD = "BRPG_RUN"
"""Names the file that tells processes of ``brpg run`` what to execute; options could be taken for another's."""


@dataclass(frozen=True)
class Job:
    """A patched source, run as if it were the script.

    Attributes:
        script: Path of the script.
        source: Its patched source.
        arguments: Its command line.
        folder: Working directory.
    """

    script: str
    source: str
    arguments: list[str]
    folder: str

    def execute(self) -> None:
        """Run it in this process."""
        name = f"{self.script} (patched)"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[name] = (len(self.source), None, lines, name)  # for tracebacks
        os.chdir(self.folder)
        sys.argv = [self.script, *self.arguments]
        script = Path(self.script)
        root, package = package_of(script)
        sys.path[:0] = dict.fromkeys(map(str, (script.parent.resolve(), script.parent, root)))
        values = {"__name__": "__main__", "__file__": self.script, "__package__": package or None}
        exec(compile(self.source, name, "exec"), values)

    def launch(self, processes: int) -> int:
        """Run it in processes that torchrun starts. Returns its exit status."""
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        with tempfile.TemporaryDirectory(prefix="brpg-run-") as folder:
            file = Path(folder, "job.json")
            file.write_text(json.dumps(asdict(self)), encoding="utf-8")
            environment = os.environ | {CHILD: str(file)}
            return subprocess.run([*launcher, "-m", "brpg_lib.cli", "run"], env=environment).returncode


def waiting_job() -> Job | None:
    """The job of a process that :meth:`Job.launch` started; ``None`` in any other."""
    if CHILD not in os.environ:
        return None
    return Job(**json.loads(Path(os.environ.pop(CHILD)).read_text(encoding="utf-8")))


def launcher_of(environment: Mapping[str, str]) -> str:
    """What started this process as one of several: ``torchrun``, ``SLURM``, or nothing."""
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= environment.keys():
        return "torchrun"
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")  # set by srun, not in the batch script around it
    return "SLURM" if tasks.isdigit() and int(tasks) > 1 else ""


def package_of(script: Path) -> tuple[Path, str]:
    """The folder that ``python -m`` starts a script of a package in, and the package's dotted name, if it is in one.

    >>> package_of(Path("nowhere/train.py"))[1]
    ''
    """
    folder, names = script.parent, list[str]()
    while (folder / "__init__.py").is_file() and folder.name:
        names.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(names)


def start_line(
    script: Path, target: Path, folder: Path, arguments: str, processes: int, *, windows: bool = os.name == "nt"
) -> str:
    """The command that starts a patched script.

    Args:
        script: The original.
        target: The patched script.
        folder: Where to start it.
        arguments: An example of its arguments.
        processes: Number of ranks; 0 for a script that knows of none.
        windows: Whether for its shell.
    """
    quote = _quote_for_windows if windows else shlex.quote
    source = quote(_relative(script.parent, folder))
    imports = ""
    root, package = package_of(target)
    if package:
        start = f"-m {package}.{target.stem}"
        folder = root
    else:
        start = quote(_relative(target, folder))
        if os.path.realpath(target.parent) != os.path.realpath(script.parent):
            added = f'set "PYTHONPATH={source};%PYTHONPATH%" && ' if windows else ""
            imports = added or f'PYTHONPATH={source}"${{PYTHONPATH:+:$PYTHONPATH}}" '
    change = "cd /d" if windows else "cd"
    launcher = f"torchrun --nproc_per_node={processes}" if processes else "python"
    moved = "" if folder == Path() else f"{change} {quote(str(folder))} && "
    return f"{moved}{imports}{launcher} {start} {arguments}".rstrip()


def extended_path(folder: str | os.PathLike[str], environment: Mapping[str, str] = os.environ) -> str:
    """``PYTHONPATH`` with a folder before what is there already.

    >>> extended_path("a", {"PYTHONPATH": "b"}) == os.pathsep.join(["a", "b"])
    True
    """
    return os.pathsep.join(filter(None, (os.fspath(folder), environment.get("PYTHONPATH", ""))))


def native(path: Path) -> Path:
    """A path with the separators of Windows, where only that of this system is there."""
    other = Path(str(path).replace("\\", "/"))
    return other if not path.exists() and other.exists() else path


def _relative(path: Path, folder: Path) -> str:
    with suppress(ValueError):  # on another drive
        return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
    return str(path)


def _quote_for_windows(text: str) -> str:
    return subprocess.list2cmdline([text])


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments before and after ``--``."""
    arguments = list(argv)
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]
