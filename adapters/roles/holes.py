"""Holes in the lines of a guide: what was not found is ``...`` there, with a comment that says what belongs there."""

from __future__ import annotations

import re

WORDS = {
    "iteration": "the count of optimizer steps so far, over all epochs",
    "length": "steps of an epoch",
    "epochs": "number of epochs",
    "epoch": "the epoch that is saved, or the count of iterations",
    "labels": "labels of the labeled images, (B, H, W)",
    "pseudo": "pseudo labels of the strong view, (B, H, W)",
    "confidence": "probability of each pseudo label, (B, H, W)",
    "weak_features": "projected features of the weak view, whose predictions the pseudo labels are",
    "weak_logits": "its logits, as the layer puts them out",
    "labeled": "which images of the batch are the labeled ones, such as :len(images)",
    "strong": "which images of the batch are the strong view, such as len(images):",
    "optimizer": "the optimizer",
    "share": "the share of the teacher that stays, where the script moves it",
}
"""What belongs into each hole."""
_HOLE = re.compile(r"HOLE_(\w+?)_HOLE")


def hole(name: str) -> str:
    """Stands for what was not found, until :func:`dotted_out`."""
    return f"HOLE_{name}_HOLE"


def holes_in(code: str) -> list[str]:
    """Names of the holes of code, each once."""
    return list(dict.fromkeys(_HOLE.findall(code)))


def dots(code: str) -> str:
    """Code with ``...`` for each hole."""
    return _HOLE.sub("...", code)


def dotted_out(code: str) -> str:
    """Code with ``...`` for each hole, and a comment at the end of its line.

    >>> print(dotted_out(f"epochs={hole('epochs')},"))
    epochs=...,  # ...: number of epochs
    """
    lines = []
    for line in code.split("\n"):
        names = holes_in(line)
        comment = f"  # ...: {'; '.join(WORDS[name] for name in names)}" if names else ""
        lines.append(dots(line) + comment)
    return "\n".join(lines)
