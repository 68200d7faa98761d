"""``brpg patch``, ``brpg run`` and ``brpg list``."""

from __future__ import annotations

import argparse
import difflib
import json
import linecache
import os
import runpy
import shlex
import subprocess
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
from .registry import FRAMEWORKS

CHILD = "BRPG_RUN"
"""Tells the processes of ``brpg run`` what to execute; on their command line, options could be taken for another's."""

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
    scripts = find_scripts(framework, arguments.path, list(FRAMEWORKS.values()))
    if arguments.output and len(scripts) > 1:
        raise PatchError(f"--output takes one script: give {scripts[0]} as the path")
    sources = [_read(script) for script in scripts]
    patched = [_patched(framework, script.name, source, fixes) for script, source in zip(scripts, sources, strict=True)]
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
    parser.add_argument("--nproc-per-node", type=int, default=1, metavar="N", help="processes to start (default: 1)")
    if CHILD in os.environ:  # started by torchrun below
        _execute(**json.loads(os.environ.pop(CHILD)))
        return 0
    own, script_arguments = _split(argv)
    arguments = parser.parse_args(own)
    framework = _framework(arguments.framework)
    fixes = _fixes(framework, arguments.fix)
    if arguments.nproc_per_node < 1:
        raise PatchError(f"--nproc-per-node: expected at least 1, found {arguments.nproc_per_node}")
    if arguments.nproc_per_node > 1 and not framework.ranks:
        raise PatchError(f"--nproc-per-node: the scripts of {framework.name} know one process only")
    script = find_scripts(framework, arguments.path, list(FRAMEWORKS.values()))[0].resolve()
    patched = _patched(framework, script.name, _read(script), fixes)
    folder = script.parent if framework.runs_in_checkout else Path.cwd()
    child = {"script": str(script), "source": patched, "arguments": script_arguments, "folder": str(folder)}
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={arguments.nproc_per_node}"]
    command = [*launcher, "--standalone", "-m", "brpg_lib.cli", "run"]
    return subprocess.run(command, env=os.environ | {CHILD: json.dumps(child)}).returncode


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


def _patched(framework: Framework, script: str, source: str, fixes: Sequence[str]) -> str:
    """The patched source; the refusal says which framework a script of the same name is of."""
    try:
        return framework.patch(script, source, fixes)
    except PatchError as error:
        fitting = [
            other.name for other in FRAMEWORKS.values() if other is not framework and _fits(other, script, source)
        ]
        hint = f"; it looks like {' or '.join(fitting)}" if fitting else ""
        raise PatchError(f"{error}{hint}") from None


def _fits(framework: Framework, script: str, source: str) -> bool:
    try:
        return script in framework.scripts and bool(framework.patch(script, source))
    except PatchError:
        return False


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments before and after ``--``."""
    arguments = list(argv)
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


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
    processes = max(1, torch.cuda.device_count())
    source, destination = (
        os.path.relpath(os.path.realpath(p), os.path.realpath(folder)) for p in (script.parent, target)
    )
    imports = "" if target.parent == script.parent else f"PYTHONPATH={shlex.quote(source)} "
    launcher = f"torchrun --nproc_per_node={processes}" if framework.ranks else "python"
    start = f"{launcher} {shlex.quote(destination)} {framework.start.get(script.name, '')}"
    return f"cd {shlex.quote(str(folder))} && {imports}{start}"


def _execute(script: str, source: str, arguments: list[str], folder: str) -> None:
    """Run a source as if it were the script."""
    name = f"{script} (patched)"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for tracebacks
    os.chdir(folder)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    exec(compile(source, name, "exec"), {"__name__": "__main__", "__file__": script})
