"""Every command tells how it is used."""

from __future__ import annotations

import importlib

import pytest

from brpg_lib import cli

BENCHMARKS = ("accuracy", "clustering", "gpu", "growth", "kernels", "step", "synchronization", "training_overhead")
SUBCOMMANDS = [command.place for command in cli.COMMANDS.values()]
PLACES = [*SUBCOMMANDS, *(f"brpg_lib.benchmarks.{name}:main" for name in BENCHMARKS)]


@pytest.mark.parametrize("place", PLACES)
def test_help(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, function = place.partition(":")
    with pytest.raises(SystemExit) as left:
        getattr(importlib.import_module(module), function)(["--help"])
    assert left.value.code == 0
    assert "usage:" in capsys.readouterr().out
