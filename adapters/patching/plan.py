"""What would be inserted where, and what is missing: made for a script, and printed for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..editing.edit import Edit, PatchError
from ..editing.engine import patch
from ..roles.findings import Findings, Missing, Role

PLACE = "place"
"""Name of what is missing where an adapter declares places instead of roles."""


@dataclass
class Plan:
    """How a script would be patched.

    Attributes:
        family: Name of the framework.
        kind: Which of its scripts this one is like; empty if its passes are of another kind.
        source: The source that the edits are for.
        findings: Roles found, and what is missing.
        edits: What the script would get.
        ranks: Whether the script knows of more than one process.
    """

    family: str
    kind: str
    source: str
    findings: Findings
    edits: list[Edit] = field(default_factory=list)
    ranks: bool = True

    @property
    def complete(self) -> bool:
        """Whether nothing is missing that the head needs."""
        return self.findings.complete

    @property
    def needed(self) -> list[Missing]:
        """What is missing that the head needs."""
        return [missing for missing in self.findings.missing if missing.needed]

    def apply(self) -> str:
        """The patched source.

        Raises:
            PatchError: Something is missing, or an edit does not fit.
        """
        if not self.complete:
            raise PatchError("; ".join(_needed(missing) for missing in self.needed))
        return self.draft()

    def draft(self) -> str:
        """The source with the edits, as far as they are known.

        Raises:
            PatchError: An edit does not fit.
        """
        return patch(self.source, self.edits)

    def lines(self, name: str) -> Iterator[str]:
        """The plan in words, line by line.

        Args:
            name: What to call the script.
        """
        like = f", like {self.kind}" if self.kind else ""
        state = "can be patched" if self.complete else "cannot be patched yet"
        yield f"{name}: {state} ({self.family}{like})"
        yield from _table([_found(role, name) for role in self.findings.roles])
        for missing in self.findings.missing:
            yield from _missing(missing, name)


def _needed(missing: Missing) -> str:
    return missing.reason if missing.name == PLACE else f"no {missing.name}: {missing.reason}"


def _found(role: Role, name: str) -> tuple[str, ...]:
    place = f"{name}:{role.line}" if role.line else name
    return role.name, role.code, place, role.sure, role.note


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [min(44, max((len(row[column]) for row in rows), default=0)) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield f"  {'  '.join((*cells, row[4]))}".rstrip()


def _missing(missing: Missing, name: str) -> Iterator[str]:
    mark = "MISSING" if missing.needed else "left out"
    yield f"  {mark}: {missing.name}: {missing.reason}"
    for line, code in missing.near:
        yield f"    near: {name}:{line}: {code}"
    if missing.by_hand:
        yield f"    by hand: {missing.by_hand}"
