"""``brpg patch``, ``brpg run`` and ``brpg list``."""

from __future__ import annotations

import argparse
import difflib
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from .engine import PatchError
from .framework import Framework, find_scripts
from .launch import Job, launcher_of, native, split_arguments, start_line, waiting_job
from .registry import FRAMEWORKS

STYLES = {"+": "green", "-": "red", "@": "cyan"}
Command = Callable[[Sequence[str]], int]


def one_line_errors(command: Command) -> Command:
    """Whatever the user can fix is one line and exit status 2."""

    @wraps(command)
    def checked(argv: Sequence[str]) -> int:
        try:
            return command(argv)
        except PatchError as error:
            print(f"brpg {command.__name__.removesuffix('_command')}: {error}", file=sys.stderr)
            return 2

    return checked


@one_line_errors
def patch_command(argv: Sequence[str]) -> int:
    """Write patched copies of a framework's scripts."""
    parser = _parser("patch", "Write SCRIPT_brpg.py beside each training script; the originals are never touched.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--diff", action="store_true", help="print the whole diff and write nothing")
    action.add_argument("--check", action="store_true", help="say whether the scripts can be patched and write nothing")
    action.add_argument("--output", type=Path, metavar="FILE", help="write to FILE; PATH must then be one script")
    arguments = parser.parse_args(argv)
    framework = _framework(arguments.framework)
    fixes = _fixes(framework, arguments.fix)
    scripts = find_scripts(framework, native(arguments.path), list(FRAMEWORKS.values()))
    if arguments.output and len(scripts) > 1:
        raise PatchError(f"--output takes one script: give {scripts[0]} as the path")
    sources = [_read(script) for script in scripts]
    patched = [framework.patch(script.name, source, fixes) for script, source in zip(scripts, sources, strict=True)]
    targets = [arguments.output or script.with_name(f"{script.stem}_brpg.py") for script in scripts]
    console = Console(soft_wrap=True, highlight=False)
    if arguments.check:
        for script in scripts:
            console.print(f"{script}: can be patched")
        return 0
    if not arguments.diff:
        _write(dict(zip(targets, patched, strict=True)))
    for script, target, source, result in zip(scripts, targets, sources, patched, strict=True):
        _print_diff(console, source, result, (script.name, target.name), context=3 if arguments.diff else 0)
        if not arguments.diff:
            console.print(f"\n{target} written. Start it with\n  {_start_line(framework, script, target)}\n")
    return 0


@one_line_errors
def run_command(argv: Sequence[str]) -> int:
    """Patch a script in memory and run it, in as many processes as asked for."""
    parser = _parser("run", "Patch a training script in memory and run it. Its own arguments follow after --.")
    processes = "processes to start (default: 1); not within torchrun or srun, which start them"
    parser.add_argument("--nproc-per-node", type=int, metavar="N", help=processes)
    job = waiting_job()
    if job is not None:
        job.execute()
        return 0
    own, script_arguments = split_arguments(argv)
    arguments = parser.parse_args(own)
    framework = _framework(arguments.framework)
    fixes = _fixes(framework, arguments.fix)
    _check_processes(arguments.nproc_per_node)
    script = find_scripts(framework, native(arguments.path), list(FRAMEWORKS.values()))[0].absolute()
    folder = script.parent if framework.runs_in_checkout else Path.cwd()
    job = Job(str(script), framework.patch(script.name, _read(script), fixes), script_arguments, str(folder))
    if launcher_of(os.environ):
        job.execute()
        return 0
    return job.launch(arguments.nproc_per_node or 1)


def _check_processes(number: int | None) -> None:
    started_by = launcher_of(os.environ)
    if number is not None and number < 1:
        raise PatchError(f"--nproc-per-node: expected at least 1, found {number}")
    if number is not None and started_by:
        raise PatchError(f"--nproc-per-node: expected none within {started_by}, which starts the processes itself")


@one_line_errors
def list_command(argv: Sequence[str]) -> int:
    """Show what can be patched."""
    argparse.ArgumentParser(prog="brpg list", description="Show the frameworks that can be patched.").parse_args(argv)
    for framework in FRAMEWORKS.values():
        print(f"{framework.name}: {', '.join(framework.scripts)}")
        print(f"  of {framework.repository}, known to work: {', '.join(framework.commits)}")
        for name, fix in framework.fixes.items():
            print(f"  --fix {name}: {fix.summary}")
    return 0


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"brpg {command}", description=description, allow_abbrev=False)
    parser.add_argument("framework", help=f"{', '.join(FRAMEWORKS)}, or FILE.py with an adapter of yours")
    parser.add_argument("path", type=Path, help="a checkout, or one of its training scripts")
    parser.add_argument(
        "--fix", action="append", default=[], metavar="BUG", help="also repair an upstream bug that brpg list names"
    )
    return parser


def _framework(name: str) -> Framework:
    """A framework by name, or ``FRAMEWORK`` of a Python file: an adapter of the user's own."""
    if name in FRAMEWORKS:
        return FRAMEWORKS[name]
    if not name.endswith(".py"):
        raise PatchError(f"unknown framework {name!r}; known are {', '.join(FRAMEWORKS)}, or FILE.py with an adapter")
    if not Path(name).is_file():
        raise PatchError(f"{name}: no such file")
    try:
        framework = runpy.run_path(name).get("FRAMEWORK")
    except (Exception, SystemExit) as error:
        raise PatchError(f"{name}: {type(error).__name__}: {error}") from None
    if not isinstance(framework, Framework):
        raise PatchError(f"{name}: expected FRAMEWORK = Framework(...), found {type(framework).__name__}")
    return framework


def _fixes(framework: Framework, names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in framework.fixes:
            known = ", ".join(framework.fixes)
            raise PatchError(f"unknown bug {name!r} of {framework.name}; --fix knows {known}")
    return list(names)


def _read(script: Path) -> str:
    try:
        with script.open(encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise PatchError(f"{script}: cannot be read: {error}") from None


def _write(files: dict[Path, str]) -> None:
    """Write all files or none; refuse to overwrite."""
    for target in files:
        if target.is_dir():
            raise PatchError(f"{target}: is a folder; --output takes a file")
        if os.path.lexists(target):
            raise PatchError(f"{target}: exists already; remove it, or patch to another place with --output")
    partial = {target: target.with_name(f".{target.name}.partial") for target in files}
    try:
        for target, source in files.items():
            with partial[target].open("w", encoding="utf-8", newline="") as file:
                file.write(source)
        for target in files:
            os.replace(partial[target], target)
    except OSError as error:
        for written in (*partial.values(), *files):
            with suppress(OSError):
                written.unlink()
        message = f"{target.parent}: cannot be written to ({error.strerror}); patch to another place with --output"
        raise PatchError(message) from None


def _print_diff(console: Console, source: str, result: str, names: tuple[str, str], context: int) -> None:
    lines = difflib.unified_diff(source.splitlines(), result.splitlines(), *names, n=context, lineterm="")
    for line in lines:
        console.print(Text(line, style=STYLES.get(line[:1], "")))


def _start_line(framework: Framework, script: Path, target: Path) -> str:
    """The command that starts a patched script; its arguments are an example."""
    folder = script.parent / framework.folder
    arguments = framework.start.get(script.name, "")
    return start_line(script, target, folder, arguments, max(1, torch.cuda.device_count()))
