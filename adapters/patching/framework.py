"""What an adapter declares about a framework, and how its scripts are found and patched."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..editing.engine import Edit, PatchError, patch

PATCHED = re.compile(r"^\s*(import|from) brpg_lib\b", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Fix:
    """An upstream bug that ``--fix`` repairs.

    Attributes:
        summary: The bug, in one line.
        edits: The repair, for each script that has the bug; or a function that finds its places in a script.
    """

    summary: str
    edits: Mapping[str, Sequence[Edit]] | Callable[[Any], Iterable[Edit]]

    def edits_for(self, script: str, found: Any = None) -> list[Edit]:
        """The repair of one script.

        Args:
            script: Its name.
            found: What is known of it.
        """
        return list(self.edits(found) if callable(self.edits) else self.edits.get(script, ()))


@dataclass(frozen=True, kw_only=True)
class Framework:
    """An upstream repository and how its training scripts are patched.

    Attributes:
        name: Its name on the command line.
        repository: Where it comes from.
        commits: Commits known to work.
        scripts: The edits of each script, by file name.
        start: Arguments that start each script, by file name; an example for the user to adapt.
        folder: Folder of the checkout that the example starts in.
        runs_in_checkout: Whether the scripts read files relative to the checkout.
        home: Folder of the repository that the scripts lie in.
        ranks: Whether the scripts know of more than one process.
        resumes: Whether the scripts load checkpoints to go on from.
        fixes: Upstream bugs that are left alone unless asked for, by name.
        by_content: Whether scripts are known by what they do, under any file name.
    """

    name: str
    repository: str
    commits: Sequence[str]
    scripts: Mapping[str, Sequence[Edit]]
    start: Mapping[str, str]
    folder: str = "."
    runs_in_checkout: bool = True
    home: str = "."
    ranks: bool = True
    resumes: bool = True
    fixes: Mapping[str, Fix] = field(default_factory=dict)
    by_content: ClassVar[bool] = False

    def patch(self, script: str, source: str, fixes: Sequence[str] = (), folder: Path | None = None) -> str:
        """The source of ``script`` with the head in it.

        Args:
            script: File name of one of the framework's scripts.
            source: Its source.
            fixes: Names of upstream bugs to repair too.
            folder: Where the script lies.

        Raises:
            PatchError: The source is patched already, or an edit does not fit it.
        """
        if PATCHED.search(source):
            raise PatchError(f"{script}: it imports brpg_lib already; patch the original instead")
        edits = list(self.scripts[script])
        for name in fixes:
            edits += self.fixes[name].edits_for(script)
        try:
            return patch(source, edits)
        except PatchError as error:
            known = ", ".join(self.commits)
            raise PatchError(f"{script}: found {error}; known to work: {self.repository} at {known}") from None


def find_scripts(framework: Framework, path: Path, others: Sequence[Framework]) -> list[Path]:
    """The scripts to patch: one, if ``path`` is a file, or all that a checkout has.

    Raises:
        PatchError: There is none.
    """
    names = " or ".join(framework.scripts)
    if not path.exists():
        raise PatchError(f"{path}: no such file or folder")
    if path.is_file():
        if path.name not in framework.scripts and not framework.by_content:
            raise PatchError(f"{path.name}: expected {names} of {framework.repository}")
        return [path]
    home = path / framework.home
    path = home if any((home / script).is_file() for script in framework.scripts) else path
    found = [path / script for script in framework.scripts if (path / script).is_file()]
    if len(found) == len(framework.scripts):
        return found
    fitting = [other.name for other in others if all((path / script).is_file() for script in other.scripts)]
    hint = f"; it looks like {' or '.join(fitting)}" if fitting else f"; expected a checkout of {framework.repository}"
    if not found or fitting:
        raise PatchError(f"{path}: has no {names}{hint}")
    return found
