"""``brpg patch``, ``brpg run`` and ``brpg list``."""

from __future__ import annotations

import argparse
import difflib
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from .editing.engine import PatchError
from .guide import guide, guide_lines
from .launch import Job, launcher_of, native, split_arguments, start_line, waiting_job
from .patching.family import Family
from .patching.framework import Framework, find_scripts
from .patching.plan import Plan
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
    """Write patched copies of training scripts."""
    parser = _parser("patch", "Write SCRIPT_brpg.py beside each training script; the originals are never touched.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--diff", action="store_true", help="print the whole diff and write nothing")
    action.add_argument(
        "--check", action="store_true", help="print what was found where, and write nothing; 1 if something is missing"
    )
    action.add_argument(
        "--guide", action="store_true", help="for a script of no known framework: what it has, and the lines to add"
    )
    action.add_argument("--output", type=Path, metavar="FILE", help="write to FILE; PATH must then be one script")
    arguments = parser.parse_args(argv)
    console = Console(soft_wrap=True, highlight=False)
    if arguments.guide:
        return _guide(console, native(Path(arguments.places[-1])))
    jobs = _jobs(arguments)
    if arguments.check:
        return _check(console, jobs)
    if arguments.output and len(jobs) > 1:
        raise PatchError(f"--output takes one script: give {jobs[0].script} as the path")
    patched = [job.patched() for job in jobs]
    targets = [arguments.output or job.script.with_name(f"{job.script.stem}_brpg.py") for job in jobs]
    if not arguments.diff:
        _write(dict(zip(targets, patched, strict=True)))
    for job, target, result in zip(jobs, targets, patched, strict=True):
        _print_diff(console, job.source, result, (job.script.name, target.name), context=3 if arguments.diff else 0)
        if not arguments.diff:
            console.print(f"\n{target} written. Start it with\n  {_start_line(job.framework, job.script, target)}\n")
            _print_left_out(console, job)
    return 0


@dataclass
class PatchJob:
    """One script to patch."""

    framework: Framework
    script: Path
    source: str
    fixes: Sequence[str]

    def plan(self) -> Plan | None:
        """What would be inserted; ``None`` for an adapter that declares places instead of roles."""
        if not isinstance(self.framework, Family):
            return None
        return self.framework.plan(self.script.name, self.source, self.fixes, self.script.parent)

    def patched(self) -> str:
        """The patched source, with the line ends of the original."""
        return self.framework.patch(self.script.name, self.source, self.fixes, self.script.parent)


def _jobs(arguments: argparse.Namespace) -> list[PatchJob]:
    """The scripts that a command line names, with their frameworks."""
    *names, place = arguments.places
    if len(names) > 1 or (names and arguments.family):
        raise PatchError(
            f"expected [FRAMEWORK] PATH, found {' '.join(arguments.places)}; --as NAME takes the framework's place"
        )
    path = native(Path(place))
    name = arguments.family or (names[0] if names else "")
    if name:
        framework = _framework(name)
        found = [(framework, script) for script in find_scripts(framework, path, list(FRAMEWORKS.values()))]
    else:
        found = _recognized(path)
    return [PatchJob(framework, script, _read(script), _fixes(framework, arguments.fix)) for framework, script in found]


def _recognized(path: Path) -> list[tuple[Framework, Path]]:
    """The framework of a script, or of all that a checkout has, by what they do."""
    if not path.exists():
        raise PatchError(f"{path}: no such file or folder")
    if path.is_dir():
        fitting = [
            framework
            for framework in FRAMEWORKS.values()
            if all((path / script).is_file() for script in framework.scripts)
        ]
        if len(fitting) != 1:
            names = " or ".join(framework.name for framework in fitting) or "no known framework"
            raise PatchError(f"{path}: looks like {names}; give FRAMEWORK PATH, or the path of one script")
        return [(fitting[0], script) for script in find_scripts(fitting[0], path, [])]
    source = _read(path)
    return [(best_family(path.name, source, path.parent), path)]


def best_family(name: str, source: str, folder: Path) -> Framework:
    """The family that lacks the least in a script."""

    def lacks(family: Framework) -> tuple[int, int]:
        assert isinstance(family, Family)
        plan = family.plan(name, source, (), folder)
        foreign = any(missing.name in ("network", "layers") for missing in plan.needed)
        return len(plan.needed) + 2 * foreign, -len(plan.findings.roles)

    return min(FRAMEWORKS.values(), key=lacks)


def _check(console: Console, jobs: Sequence[PatchJob]) -> int:
    """Print what is known of scripts. Status 1 if one lacks something that the head needs."""
    status = 0
    for job in jobs:
        plan = job.plan()
        if plan is None:
            job.patched()
            console.print(f"{job.script}: can be patched")
            continue
        plan.findings.roles.sort(key=lambda role: role.line)
        for line in plan.lines(str(job.script)):
            console.print(Text(line))
        if not plan.complete:
            status = 1
            continue
        patched = job.patched()
        console.print(Text("  inserted:"))
        for line in inserted_lines(job.source, patched):
            console.print(Text(f"    {line}"))
    return status


def inserted_lines(source: str, patched: str) -> list[str]:
    """What a patch adds: each line, with the line of the original that it stands after."""
    found, after = [], 0
    for line in difflib.ndiff(source.splitlines(), patched.splitlines()):
        if line.startswith("+ ") and line[2:].strip():
            found.append(f"after {after}: {line[2:]}")
        after += line[:2] in ("  ", "- ")
    return found


def _print_left_out(console: Console, job: PatchJob) -> None:
    plan = job.plan()
    for missing in plan.findings.missing if plan is not None else ():
        console.print(Text(f"left out: {missing.name}: {missing.reason}; by hand: {missing.by_hand}"))


def _guide(console: Console, path: Path) -> int:
    """Print what an own script has, and the lines to add. Status 1 if an input is missing."""
    made = guide(_read(path))
    for line in guide_lines(str(path), _read(path), made):
        console.print(Text(line, style=STYLES.get(line[:1], "")))
    return 0 if made.plan.complete else 1


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
    found = _jobs(arguments)[0]
    _check_processes(arguments.nproc_per_node, found.framework)
    script = found.script.absolute()
    folder = script.parent if found.framework.runs_in_checkout else Path.cwd()
    job = Job(str(script), found.patched(), script_arguments, str(folder))
    if launcher_of(os.environ):
        job.execute()
        return 0
    return job.launch(arguments.nproc_per_node or 1)


def _check_processes(number: int | None, framework: Framework) -> None:
    started_by = launcher_of(os.environ)
    if number is not None and number < 1:
        raise PatchError(f"--nproc-per-node: expected at least 1, found {number}")
    if number is not None and started_by:
        raise PatchError(f"--nproc-per-node: expected none within {started_by}, which starts the processes itself")
    if not framework.ranks and (started_by or (number or 1) > 1):
        raise PatchError(f"--nproc-per-node: the scripts of {framework.name} know one process only")


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
    parser.usage = f"brpg {command} [options] [FRAMEWORK] PATH"
    what = f"FRAMEWORK ({', '.join(FRAMEWORKS)}, or FILE.py with an adapter of yours; found out if left out) and PATH, a checkout or a script"
    parser.add_argument("places", nargs="+", metavar="PATH", help=what)
    parser.add_argument("--as", dest="family", metavar="FRAMEWORK", help="take the script for one of this framework")
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
    processes = max(1, torch.cuda.device_count()) if framework.ranks else 0
    return start_line(script, target, folder, arguments, processes)
