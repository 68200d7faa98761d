"""The lines for a script of no known framework: what it has, what is missing, and a diff."""

from __future__ import annotations

from collections.abc import Iterator


def guide_lines(name: str, source: str) -> Iterator[str]:
    """What a script has and lacks, line by line."""
    yield from ()
