"""What an adapter declares about a framework, and how its scripts are found and patched."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..editing.edit import AddArgument, After, Before, Edit, PatchError, Replace, Require
from ..editing.engine import lines_of, misplaced
from ..editing.tidy import MARK
from ..roles.findings import Findings, Missing
from .plan import PLACE, Plan

KINDS: Mapping[type[Edit], str] = {
    Require: "relies on",
    Before: "lines before",
    After: "lines after",
    Replace: "replaces",
    AddArgument: "argument of",
}
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

    @property
    def any_name(self) -> bool:
        """Whether scripts are known under any file name."""
        return False

    def knows(self, script: str, source: str) -> bool:
        """Whether a script is one of this framework's."""
        if script not in self.scripts:
            return False
        try:
            return self.plan(script, source).complete
        except PatchError:
            return False

    def patch(self, script: str, source: str, fixes: Sequence[str] = (), folder: Path | None = None) -> str:
        """The source of a script with the head in it; the arguments are those of :meth:`plan`.

        Raises:
            PatchError: The source is patched already, it lacks something, or an edit does not fit it.
        """
        return self.applied(self.plan(script, source, fixes, folder), script, source)

    def applied(self, plan: Plan, script: str, source: str) -> str:
        """The source with a plan of it carried out; raises as :meth:`patch` does."""
        mark = MARK if source.startswith(MARK) else ""
        try:
            return mark + plan.apply()
        except PatchError as error:
            known = f"known to work: {self.repository} at {', '.join(self.commits)}"
            raise PatchError(f"{script}: found {error}; {known}; brpg patch --check tells all of it") from None

    def plan(self, script: str, source: str, fixes: Sequence[str] = (), folder: Path | None = None) -> Plan:
        """How a script would be patched.

        Args:
            script: Its file name.
            source: Its source.
            fixes: Names of upstream bugs to repair too.
            folder: Where the script lies, to look into its network; ``None`` if nowhere.

        Raises:
            PatchError: It is patched already, or no Python.
        """
        self.refuse_patched(script, source)
        edits = list(self.scripts[script])
        for name in fixes:
            edits += self.fixes[name].edits_for(script)
        source = source.removeprefix(MARK)
        try:
            lines = lines_of(source, edits)
        except PatchError as error:
            raise PatchError(f"{script}: {error}") from None
        findings = Findings()
        for edit, found in zip(edits, lines, strict=True):
            if len(found) == 1 or edit.optional:
                if found:
                    findings.add(KINDS[type(edit)], _first_line(edit.anchor), found[0])
                continue
            near = [(line, text) for line in found for text in [source.splitlines()[line - 1].strip()]]
            missing = Missing(PLACE, misplaced(edit, len(found)), near or _alike(edit, source), _first_line(edit.uses))
            findings.missing.append(missing)
        return Plan(self.name, script, source, findings, edits, self.ranks)

    @staticmethod
    def refuse_patched(script: str, source: str) -> None:
        """Raise :class:`PatchError` for a source that is patched already."""
        if PATCHED.search(source):
            raise PatchError(f"{script}: it imports brpg_lib already; patch the original instead")


def _first_line(code: str) -> str:
    return code.strip().splitlines()[0] if code.strip() else ""


def _alike(edit: Edit, source: str) -> list[tuple[int, str]]:
    """Lines most like an anchor's first one."""
    lines = [line.strip() for line in source.splitlines()]
    near = difflib.get_close_matches(_first_line(edit.anchor), lines, n=3, cutoff=0.6)
    return [(lines.index(line) + 1, line) for line in near]


def scripts_in(framework: Framework, path: Path) -> list[Path]:
    """The scripts that a checkout has of a framework, in its folder or in that of the framework."""
    home = path / framework.home
    path = home if any((home / script).is_file() for script in framework.scripts) else path
    return [path / script for script in framework.scripts if (path / script).is_file()]
