"""Every message of the library is on the page that says what to do about it, and nothing that no longer exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text()
ENTRIES = re.findall(r"^\*\*`(.*)`\*\*<br>$", PAGE, re.MULTILINE)
FIELDS = {name for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE) for name in re.findall(r"`([\w.]+)`", row)}
HERE = (
    *("calls", "checkpoint", "collect/room", "collect/saved_rows", "head", "head_state", "kernels/optional", "layers"),
    *("learn/diagnostics", "misuse", "projection", "tap"),
)
"""Modules whose texts are shown to users as they are."""


def text_of(node: ast.AST) -> str | None:
    """A string, with … for what varies."""
    if isinstance(node, ast.JoinedStr):
        parts = (value.value if isinstance(value, ast.Constant) else "…" for value in node.values)
        return "".join(map(str, parts))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def texts(path: Path) -> Iterator[str]:
    """Sentences in a file that are no docstrings."""
    tree = ast.parse(path.read_text())
    left_out = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    left_out |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        text = text_of(node)
        if text and id(node) not in left_out and len(text) > 44 and " " in text and not text.startswith(("; ", ", ")):
            yield text


MESSAGES = [text for name in HERE for text in texts(ROOT / f"brpg_lib/{name}.py")]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message[:40])
def test_every_message_is_on_the_page(message: str) -> None:
    assert [entry for entry in ENTRIES if entry in message], message


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry[:40])
def test_every_entry_is_a_message(entry: str) -> None:
    assert [message for message in MESSAGES if entry in message]


def test_there_are_as_many_as_there_were() -> None:
    assert len(MESSAGES) >= 30, "a check that looks at nothing"


def test_every_field_of_a_batch_is_on_the_page() -> None:
    strings = set(re.findall(r'"((?:labeled|unlabeled)\.\w+)"', (ROOT / "brpg_lib/batches.py").read_text()))
    assert len(strings) >= 8
    assert strings - FIELDS == set()


def test_every_argument_that_is_refused_is_on_the_page() -> None:
    """Fields that a call of ``require`` or one of its kind names, beside those of the settings."""
    files = [ROOT / f"brpg_lib/{name}.py" for name in ("head_state", "head", "checkpoint", "batches", "cluster/bank")]
    files += (ROOT / "brpg_lib/ranks").glob("*.py")
    found = {name for path in files for name in re.findall(r'require\w*\([^"\n]*"([\w.]+)"', path.read_text())}
    assert {"process_group", "state_dict", "seed"} <= found
    assert found - FIELDS == set()
