"""The examples that patch a checkout train it through all phases and leave it as it was."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

STANDINS = Path(__file__).parents[1] / "standins"


@pytest.mark.parametrize(
    ("example", "checkout", "options"),
    [
        pytest.param("unimatch_patch", "unimatch", [], marks=pytest.mark.slow),
        pytest.param("unimatch_patch", "unimatch_v2", ["--script", "fixmatch.py"], marks=pytest.mark.slow),
        ("u2pl_patch", "u2pl", ["--processes", "2"]),
    ],
)
def test_patches_and_trains(
    example: str,
    checkout: str,
    options: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    clone = Path(shutil.copytree(STANDINS / checkout, tmp_path / "clone", ignore=shutil.ignore_patterns("__pycache__")))
    before = {path: path.read_bytes() for path in clone.rglob("*") if path.is_file()}
    main = importlib.import_module(f"brpg_lib.examples.{example}").main
    assert main([str(clone), "--out", str(tmp_path / "out"), *options]) == 0
    text = "".join(capfd.readouterr())
    for phase in ("warm-up", "collecting features", "learning with"):
        assert f"brpg: {phase}" in text
    assert list((tmp_path / "out").rglob("*.brpg.pth"))
    assert {path: path.read_bytes() for path in clone.rglob("*") if path.is_file()} == before
