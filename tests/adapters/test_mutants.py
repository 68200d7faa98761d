"""Scripts that mean the same and look different: patched rightly, or refused with a reason; never patched wrongly."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from mutants import mutant
from rehearsal import rehearse, workspace
from training import BY_CONTENT

from brpg_lib.adapters.editing.edit import PatchError
from brpg_lib.adapters.registry import FRAMEWORKS

STANDINS = Path(__file__).parents[1] / "standins"


def tried(framework: str, script: str, seeds: range, folder: Path) -> int:
    """How many mutants are patched; each must receive what the original does."""
    checkout = STANDINS / framework.replace("-", "_")
    place = workspace(framework, checkout, folder)
    fixes = [fix for fix in FRAMEWORKS[framework].fixes if fix == "short-epochs"]
    source = (checkout / script).read_text()
    patched = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = rehearse(FRAMEWORKS[framework].patch(script, source, fixes), checkout, place)
        for seed in seeds:
            try:
                changed = FRAMEWORKS[framework].patch("mine.py", mutant(source, seed), fixes, checkout)
            except PatchError as error:
                assert ": found no " in str(error)  # noqa: PT017
                continue
            assert rehearse(changed, checkout, place) == truth, seed
            patched += 1
    return patched


QUICK = [pair for pair in BY_CONTENT if pair[1] != "fixmatch.py" and not pair[0].endswith(("sensing", "medical"))]
"""One of several scripts that are much alike."""


def at_least(framework: str, share: float) -> float:
    """The share of mutants that must be patched; two values of CorrMatch are known by their names only."""
    return 0.2 if framework == "corrmatch" else share


@pytest.mark.parametrize(("framework", "script"), QUICK)
def test_some(framework: str, script: str, tmp_path: Path) -> None:
    assert tried(framework, script, range(3), tmp_path) >= 3 * at_least(framework, 0.6)


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "script"), BY_CONTENT)
def test_many(framework: str, script: str, tmp_path: Path) -> None:
    patched = tried(framework, script, range(100, 150), tmp_path)
    print(f"{framework} {script}: {patched} of 50 mutants patched, the others refused, none wrong")  # shown with -rP
    assert patched >= 50 * at_least(framework, 0.8)
