"""PrevMatch: UniMatch with mixed precision, guided by earlier states of its network. It never resumes."""

from __future__ import annotations

from dataclasses import replace

from .unimatch import LINES, UNIMATCH, arguments

SCRIPT = "prevmatch.py"

PREVMATCH = replace(
    UNIMATCH,
    name="prevmatch",
    repository="https://github.com/wooseok-shin/PrevMatch",
    commits=("bcfac70",),
    scripts={SCRIPT: ()},
    lines={SCRIPT: LINES["unimatch.py"]},
    start={SCRIPT: arguments("pascal", "92", "prevmatch_brpg/r50/92")},
    marker="prev_utils",
    resumes=False,
)
