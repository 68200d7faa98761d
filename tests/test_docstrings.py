"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

import brpg_lib

ROOT = Path(__file__).parent.parent
FILES = [
    path
    for package in ("brpg_lib", "adapters", "examples", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
    if re.search(r"^ *>>> ", path.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name if name.startswith("brpg_lib") else f"brpg_lib.{name}")
    torch.manual_seed(0)
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS, extraglobs={"torch": torch})
    assert found.attempted > 0
    assert found.failed == 0


PLAIN = ("HeadOutput", "Phase", "Prototypes", "Samples", "Split", "__version__")
"""What modules give back, without behaviour of its own."""


@pytest.mark.parametrize("name", sorted(set(brpg_lib.__all__) - set(PLAIN)))
def test_every_public_name_has_an_example(name: str) -> None:
    assert ">>> " in (getattr(brpg_lib, name).__doc__ or "")
