"""What a training script needs for the head, found in it or missing: the words that all of its parts share."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..analysis.values import Place, Value
from ..analysis.views import names_of, plain

CERTAIN, LIKELY = "certain", "likely"


@dataclass(frozen=True)
class Role:
    """A part of a training step, and where it was found.

    Attributes:
        name: What it is for.
        code: The code that stands for it in the inserted lines.
        line: Where it was found.
        sure: ``certain``, or ``likely`` where the flow of values leaves a choice.
        note: Why, or what follows.
    """

    name: str
    code: str
    line: int
    sure: str = CERTAIN
    note: str = ""


@dataclass(frozen=True)
class Missing:
    """A part that was not found.

    Attributes:
        name: What it is for.
        reason: What was looked for, and what was found instead.
        near: Lines that come nearest, with their code.
        by_hand: The line to add by hand.
        needed: Whether the head cannot work without.
    """

    name: str
    reason: str
    near: Sequence[tuple[int, str]] = ()
    by_hand: str = ""
    needed: bool = True


class Lacking(Exception):  # noqa: N818
    """Stops a search at a part that is missing."""

    def __init__(self, missing: Missing) -> None:
        super().__init__(missing.reason)
        self.missing = missing


@dataclass
class Findings:
    """Roles found, and what is missing.

    Attributes:
        roles: In the order they were found.
        missing: What was looked for in vain.
        tolerant: Whether a part that is missing leaves a hole in the lines, instead of none of them.
    """

    roles: list[Role] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    tolerant: bool = False

    @contextmanager
    def bearing(self) -> Iterator[None]:
        """Note a part that is missing, where that is tolerated.

        Raises:
            Lacking: It is not.
        """
        try:
            yield
        except Lacking as lacking:
            if not self.tolerant:
                raise
            if lacking.missing not in self.missing:
                self.missing.append(lacking.missing)

    def add(self, name: str, code: str, line: int, sure: str = CERTAIN, note: str = "") -> str:
        """Note a role; gives its code back."""
        self.roles.append(Role(name, code, line, sure, note))
        return code

    def lack(self, name: str, reason: str, *, near: Iterable[tuple[int, str]] = (), by_hand: str = "") -> None:
        """Note a part that the head can do without."""
        self.missing.append(Missing(name, reason, tuple(near), by_hand, needed=False))

    @property
    def complete(self) -> bool:
        """Whether nothing is missing that the head needs."""
        return not any(missing.needed for missing in self.missing)


def code_of(value: Value, place: Place, env: dict[str, Value]) -> str | None:
    """Code that gives a value at ``place``: a name that holds it, or the expression that made it.

    Args:
        value: It.
        place: Where the code will stand.
        env: What names held where the value was made.
    """
    names = [name for name in names_of(value, place.env) if not name.startswith("_")]
    if names:
        return names[0]
    node = plain(value).node
    if not isinstance(node, ast.expr):
        return None
    used = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    unchanged = all(env.get(name) is place.env.get(name) for name in used)
    return ast.unparse(node) if unchanged and not any(isinstance(n, ast.Call) for n in ast.walk(node)) else None


def line_of(value: Value | None, default: int = 0) -> int:
    """Line of the expression that made a value."""
    return int(getattr(value.node, "lineno", default)) if value is not None else default


def nearest(name: str, env: dict[str, Value], among: Iterable[str]) -> list[tuple[int, str]]:
    """Names like one that is missing, with the lines that bind them."""
    near = difflib.get_close_matches(name, list(among), n=3, cutoff=0.3)
    return [(int(getattr(env[found].node, "lineno", 0)), found) for found in near]
