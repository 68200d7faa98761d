"""``brpg patch``, ``brpg run`` and ``brpg list``."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from .editing.edit import PatchError
from .guide import guide
from .guide_lines import guide_lines
from .jobs import PatchJob, jobs_of, read
from .launch import Job, launcher_of, native, split_arguments, start_line, waiting_job
from .registry import FRAMEWORKS
from .settings import in_words

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
    action.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write to FILE; PATH must then be one script (default: SCRIPT_brpg.py beside it)",
    )
    arguments = parser.parse_args(argv)
    console = Console(soft_wrap=True, highlight=False)
    if arguments.guide:
        return _guide(console, native(Path(arguments.places[-1])))
    jobs = jobs_of(arguments)
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
            console.print(f"\n{target} written.")
            _print_settings(console, result)
            console.print(f"Start it with\n  {_start_line(job, target)}\n")
            _print_left_out(console, job)
    return 0


def _check(console: Console, jobs: Sequence[PatchJob]) -> int:
    """Print what is known of scripts. Status 1 if one lacks something that the head needs."""
    status = 0
    for job in jobs:
        plan = job.plan
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
        _print_settings(console, patched, indent="  ")
    return status


def _print_settings(console: Console, patched: str, indent: str = "") -> None:
    for line in in_words(from_file="take_section" in patched):
        console.print(Text(indent + line))


def inserted_lines(source: str, patched: str) -> list[str]:
    """What a patch adds and changes: each line, with the line of the original that it follows or replaces."""
    old, new, found = source.splitlines(), patched.splitlines(), list[str]()
    for kind, start, end, first, last in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "replace" and end - start == last - first:
            found += [f"in the place of {start + number + 1}: {new[first + number]}" for number in range(end - start)]
        elif kind in ("insert", "replace"):
            found += [
                f"after {start}: {line}" for line in new[first:last] if line.strip() and line not in old[start:end]
            ]
    return found


def _print_left_out(console: Console, job: PatchJob) -> None:
    for missing in job.plan.findings.missing:
        console.print(Text(f"left out: {missing.name}: {missing.reason}; by hand: {missing.by_hand}"))


def _guide(console: Console, path: Path) -> int:
    """Print what an own script has, and the lines to add. Status 1 if an input is missing."""
    source = read(path)
    made = guide(source)
    for line in guide_lines(str(path), source, made):
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
    found = jobs_of(arguments)[0]
    _check_processes(arguments.nproc_per_node, found)
    script = found.script.absolute()
    folder = script.parent if found.framework.runs_in_checkout else Path.cwd()
    job = Job(str(script), found.patched(), script_arguments, str(folder))
    if launcher_of(os.environ):
        job.execute()
        return 0
    return job.launch(arguments.nproc_per_node or 1)


def _check_processes(number: int | None, job: PatchJob) -> None:
    started_by = launcher_of(os.environ)
    if number is not None and number < 1:
        raise PatchError(f"--nproc-per-node: expected at least 1, found {number}")
    if number is not None and started_by:
        raise PatchError(f"--nproc-per-node: expected none within {started_by}, which starts the processes itself")
    if (started_by or (number or 1) > 1) and not job.plan.ranks:
        raise PatchError(f"--nproc-per-node: {job.script.name} knows one process only")


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
    known = f"{', '.join(FRAMEWORKS)}, or FILE.py with an adapter of yours; found out if left out"
    what = f"FRAMEWORK ({known}) and PATH, a checkout or a script"
    parser.add_argument("places", nargs="+", metavar="PATH", help=what)
    parser.add_argument(
        "--as",
        dest="family",
        metavar="FRAMEWORK",
        help="take the script for one of this framework (default: found out)",
    )
    parser.add_argument(
        "--fix",
        action="append",
        default=[],
        metavar="BUG",
        help="also repair an upstream bug that brpg list names (default: none)",
    )
    return parser


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


def _start_line(job: PatchJob, target: Path) -> str:
    """The command that starts a patched script; its arguments are an example."""
    plan = job.plan
    arguments = job.framework.start.get(plan.kind, "")
    processes = max(1, torch.cuda.device_count()) if plan.ranks else 0
    return start_line(job.script, target, job.script.parent / job.framework.folder, arguments, processes)
