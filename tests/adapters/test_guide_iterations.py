"""``brpg patch --guide``: scripts that count iterations, and no epochs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from own_scripts import ITERATIONS

from brpg_lib.adapters.guide import guide
from brpg_lib.cli import main

LOOP = "    while iteration < last:\n        (a, truth), (weak, strong) = next(known), next(unknown)\n"
COUNT = "        iteration += 1\n"
ONE_LOOP = ITERATIONS.replace(COUNT, "").replace("iteration, top = 0, 0.0", "start, top = 0, 0.0")
ONE_LOOP = ONE_LOOP.replace('iteration = saved["iteration"]', 'start = saved["iteration"] + 1')
ONE_LOOP = ONE_LOOP.replace("while iteration < last:", "for iteration in range(start, last):")


def _roles(source: str) -> dict[str, str]:
    return {role.name: role.code for role in guide(source).plan.findings.roles}


def _changed(*changes: tuple[str, str], source: str = ITERATIONS) -> str:
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


BATCH = "(a, truth), (weak, strong)"
BODY = ITERATIONS[ITERATIONS.index(LOOP) + len(LOOP) : ITERATIONS.index("\n\nif __name__")]
PLAIN_LOADERS = ("again(DataLoader", "(DataLoader")
LEFT = COUNT + "        if iteration >= last:\n            break\n"
ENUMERATED = f"    for iteration, ({BATCH}) in enumerate(zip(known, unknown)):\n"
NESTED = f"    while iteration < last:\n        for {BATCH} in zip(known, unknown):\n"
LENGTH = "max(1, last // 100)"
FORMS = {
    "as it is": (ITERATIONS, "iteration", LENGTH),
    "one loop over a range": (ONE_LOOP, "iteration", LENGTH),
    "with a progress bar": (
        _changed(("range(start, last)", "tqdm(range(start, last))"), source=ONE_LOOP),
        "iteration",
        LENGTH,
    ),
    "a number": (_changed(("range(start, last)", "range(40000)"), source=ONE_LOOP), "iteration", "400"),
    "a few": (_changed(("range(start, last)", "range(40)"), source=ONE_LOOP), "iteration", "1"),
    "left by a break": (
        _changed(("while iteration < last", "while True"), (COUNT, LEFT)),
        "iteration",
        LENGTH,
    ),
    "counted first": (_changed((COUNT, ""), (LOOP, LOOP + COUNT)), "iteration - 1", LENGTH),
    "over loaders that never end": (
        _changed((LOOP, ENUMERATED), (COUNT, ""), PLAIN_LOADERS),
        "iteration",
        "max(1, min(len(known), len(unknown)) // 100)",
    ),
    "loaders again and again": (
        _changed((LOOP + BODY, NESTED + BODY.replace("        ", "            ")), PLAIN_LOADERS),
        "iteration",
        LENGTH,
    ),
    "computed": (
        _changed(("while iteration < last", "while iteration < 2 * last")),
        "iteration",
        "max(1, (2 * last) // 100)",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    source, iteration, length = FORMS[form]
    compile(source, form, "exec")
    made = guide(source)
    assert not made.plan.needed
    roles = _roles(source)
    assert (roles["iteration"], roles["steps of an epoch"], roles["epochs"]) == (iteration, length, "100")
    assert roles["average"] == "0.9"
    patched = made.plan.apply()
    compile(patched, form, "exec")
    assert "brpg.save('net.pth', iteration)" in patched
    if "start" not in source or "range(start, last)" in source:
        assert "brpg.load('net.pth', saved['iteration'])" in patched


def test_epochs_that_a_while_loop_counts_are_no_iterations(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The count goes up once for each pass through the data."""
    script = tmp_path / "train.py"
    body = BODY.replace("        ", "            ").replace("    " + COUNT, "")
    loop = f"    while epoch < last:\n        epoch += 1\n        for {BATCH} in zip(known, unknown):\n"
    script.write_text(_changed((LOOP + BODY, loop + body), PLAIN_LOADERS, ("iteration, top = 0", "epoch, top = 0")))
    assert main(["patch", str(script), "--guide"]) == 1
    printed = capsys.readouterr().out
    assert "MISSING: epochs: " in printed
    assert "HOLE" not in printed
    assert "brpg.save('net.pth', ...)  # ...: the epoch that is saved, or the count of iterations" in printed


def test_a_training_that_counts_iterations_goes_on(tmp_path: Path) -> None:
    script, settings = tmp_path / "train.py", "{'feature_dim': 8, 'grid_size': 4, 'rare_class_fallback': True}"
    patched, losses = guide(ITERATIONS).plan.apply(), {}
    for name, source, section, ends in (
        ("original", ITERATIONS, "", [8]),
        ("disabled", patched, "{'enabled': False}", [8]),
        ("enabled", patched, settings, [8, 12]),
    ):
        folder, losses[name] = tmp_path / name, list[float]()
        folder.mkdir()
        for end in ends:
            changed = source.replace("last=12", f"last={end}").replace("{'preset': 'small_data'}", section)
            script.write_text(changed.replace("'FOLDER'", repr(str(folder))))
            done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            losses[name] += [json.loads(line) for line in done.stdout.splitlines()]
    original, enabled = losses["original"], losses["enabled"]
    assert original == losses["disabled"]
    assert len(original) == 8
    assert len(enabled) == 12, "the second run goes on after the first"
    assert enabled[:2] == pytest.approx(original[:2], rel=1e-6)
    assert all(one > two for one, two in zip(enabled[2:8], original[2:], strict=True))
    recorded = json.loads((tmp_path / "enabled/brpg_result.json").read_text())
    assert [row["epoch"] for row in recorded["validations"]] == [4, 8, 12]
