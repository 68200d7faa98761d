"""Which scripts a command is for, and which framework each of them is of."""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from .editing.edit import PatchError
from .launch import native
from .patching.family import Family
from .patching.framework import Framework, scripts_in
from .patching.plan import Plan
from .registry import FRAMEWORKS


@dataclass(frozen=True)
class PatchJob:
    """One script to patch.

    Attributes:
        framework: What it is of.
        script: Where it is.
        source: What it holds.
        fixes: Names of upstream bugs to repair too.
    """

    framework: Framework
    script: Path
    source: str
    fixes: Sequence[str]

    @cached_property
    def plan(self) -> Plan:
        """What would be inserted."""
        return self.framework.plan(self.script.name, self.source, self.fixes, self.script.parent)

    def patched(self) -> str:
        """The patched source."""
        return self.framework.applied(self.plan, self.script.name, self.source)


def jobs_of(arguments: argparse.Namespace) -> list[PatchJob]:
    """The scripts that a command line names: ``[FRAMEWORK] PATH``, or ``PATH --as FRAMEWORK``.

    Raises:
        PatchError: There is no such script, or it is of another framework.
    """
    *names, place = arguments.places
    if len(names) > 1 or (names and arguments.family):
        raise PatchError(
            f"expected [FRAMEWORK] PATH, found {' '.join(arguments.places)}; --as NAME takes the framework's place"
        )
    path = native(Path(place))
    name = arguments.family or (names[0] if names else "")
    framework = framework_called(name) if name else None
    if not path.exists():
        raise PatchError(f"{path}: no such file or folder")
    found = [(framework, script) for script in _scripts(framework, path)] if framework else _recognized(path)
    jobs = [PatchJob(owner, script, read(script), _fixes(owner, arguments.fix)) for owner, script in found]
    if framework is not None and not arguments.family and framework in FRAMEWORKS.values():
        for job in jobs:
            _refuse_others(job)
    return jobs


def framework_called(name: str) -> Framework:
    """A framework by name, or ``FRAMEWORK`` of a Python file: an adapter of the user's own.

    Raises:
        PatchError: There is none.
    """
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


@cache
def frameworks_of(script: Path, source: str) -> list[Framework]:
    """The frameworks that know a script; those with a sign of their own before those that it could be of too."""
    known = [framework for framework in FRAMEWORKS.values() if framework.knows(script.name, source)]
    special = [framework for framework in known if not isinstance(framework, Family) or framework.marker]
    return special or known


def read(script: Path) -> str:
    """A script's source, with the line ends that it has.

    Raises:
        PatchError: It cannot be read.
    """
    try:
        with script.open(encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise PatchError(f"{script}: cannot be read: {error}") from None


def _scripts(framework: Framework, path: Path) -> list[Path]:
    names = " or ".join(framework.scripts)
    if path.is_file():
        if path.name not in framework.scripts and not framework.any_name:
            raise PatchError(f"{path.name}: expected {names} of {framework.repository}")
        return [path]
    found = scripts_in(framework, path)
    if not found:
        looks = _looks_like([owner for owner, _ in _known_in(path)])
        raise PatchError(f"{path}: has no {names}; {looks or f'expected a checkout of {framework.repository}'}")
    return found


def _known_in(path: Path) -> list[tuple[Framework, Path]]:
    """Scripts of a folder with the frameworks that they are of; those of folders within it only if it has none."""
    pairs = [
        (framework, script)
        for framework in FRAMEWORKS.values()
        for script in scripts_in(framework, path)
        if framework in frameworks_of(script, read(script))
    ]
    return [pair for pair in pairs if pair[1].parent == path] or pairs


def _looks_like(frameworks: Sequence[Framework]) -> str:
    names = dict.fromkeys(framework.name for framework in frameworks)
    return f"it looks like {' or '.join(names)}" if names else ""


def _refuse_others(job: PatchJob) -> None:
    """Refuse a script that is evidently another framework's."""
    known = frameworks_of(job.script, job.source)
    if known and job.framework not in known:
        hint = f"--as {job.framework.name} takes it for one of {job.framework.name} all the same"
        raise PatchError(f"{job.script}: it is no script of {job.framework.name}; {hint}; {_looks_like(known)}")


def _recognized(path: Path) -> list[tuple[Framework, Path]]:
    """The framework of a script, or of all that a checkout has, by what they do."""
    if path.is_file():
        return [(_best(path, read(path)), path)]
    found = _known_in(path)
    if len({framework.name for framework, _ in found}) != 1:
        looks = _looks_like([framework for framework, _ in found]) or "it looks like no known framework"
        raise PatchError(f"{path}: {looks}; give FRAMEWORK PATH, or the path of one script")
    return found


def _best(script: Path, source: str) -> Framework:
    """The framework that knows a script; of several, the one that lacks the least in it."""

    def lacks(framework: Framework) -> tuple[int, int]:
        plan = framework.plan(script.name, source, (), script.parent)
        return len(plan.needed), -len(plan.findings.roles)

    known = frameworks_of(script, source)
    if len(known) == 1:
        return known[0]
    if not known:
        hint = f"brpg patch {script.name} --guide finds what it has, --as NAME takes it for one of a framework"
        raise PatchError(f"{script}: its network is of no known framework; {hint}")
    return min(known, key=lacks)


def _fixes(framework: Framework, names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in framework.fixes:
            known = ", ".join(framework.fixes)
            raise PatchError(f"unknown bug {name!r} of {framework.name}; --fix knows {known}")
    return list(names)
