"""Scripts that people have edited: patched, run, and compared with the original, map by map."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from rehearsal import Received, rehearse, workspace
from training import BY_CONTENT
from variants import AT_FIRST, EXACT

from brpg_lib.adapters.registry import FRAMEWORKS
from brpg_lib.examples.checkouts import Workspace

STANDINS = Path(__file__).parents[1] / "standins"
Rehearse = Callable[[str, str, str], Received]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearse:
    """Patches a source under any name and runs it."""

    @cache
    def place(framework: str) -> Workspace:
        return workspace(framework, checkout(framework), tmp_path_factory.mktemp(framework))

    def run(framework: str, name: str, source: str) -> Received:
        fixes = [fix for fix in FRAMEWORKS[framework].fixes if fix == "short-epochs"]
        patched = FRAMEWORKS[framework].patch(name, source, fixes, checkout(framework))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return rehearse(patched, checkout(framework), place(framework))

    return run


@pytest.fixture(scope="module")
def truth(rehearsal: Rehearse) -> Callable[[str, str], Received]:
    """What the head of an original receives."""
    return cache(lambda framework, script: rehearsal(framework, script, original(framework, script)))


def checkout(framework: str) -> Path:
    return STANDINS / framework.replace("-", "_")


def original(framework: str, script: str) -> str:
    return (checkout(framework) / script).read_text()


def applies(framework: str, script: str, variant: str) -> bool:
    """Whether a script has what a variant changes: not all log, nor go backward in one line."""
    try:
        return bool((EXACT | AT_FIRST)[variant](original(framework, script)))
    except AssertionError:
        return False


VARIANTS = [*EXACT, *AT_FIRST]
EVERY = [(*script, variant) for variant in VARIANTS for script in BY_CONTENT if applies(*script, variant)]
QUICK = {variant: [case for case in EVERY if case[2] == variant] for variant in VARIANTS}
CHOSEN = {cases[index % len(cases)] for index, cases in enumerate(QUICK.values())}
"""Each variant once; those of all scripts are slow."""


@pytest.mark.parametrize(
    ("framework", "script", "variant"),
    [pytest.param(*case, marks=() if case in CHOSEN else pytest.mark.slow) for case in EVERY],
)
def test_the_head_receives_the_same(
    framework: str, script: str, variant: str, rehearsal: Rehearse, truth: Callable[[str, str], Received]
) -> None:
    source = (EXACT | AT_FIRST)[variant](original(framework, script))
    received, expected = rehearsal(framework, "my_train.py", source), truth(framework, script)
    assert [one["iteration"] for one in received] == [one["iteration"] for one in expected]
    steps = len(expected) if variant in EXACT else 1
    assert received[:steps] == expected[:steps]
