"""Two processes with prototypes moved together, or by each alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brpg_lib.benchmarks import synchronization


def test_the_page_tells_drift_and_difference() -> None:
    results = [
        {"variant": variant, "seed": seed, "steps": 10, "distances": [(5, apart), (10, 2 * apart)],
         "miou": 30.0 + gain + seed, "boundary_miou": 20.0}
        for variant, apart, gain in (("together", 0.0, 0.0), ("each alone", 1e-3, -1.0))
        for seed in (0, 1)
    ]  # fmt: skip
    text = synchronization.table(results).markdown()
    assert "| together | 0.0e+00 | 30.5 | 20.0 |" in text
    assert "| each alone | 2.0e-03 | 29.5 | 20.0 | -1.0 [-1.0, -1.0] |" in text
    assert synchronization.draw(results).axes


@pytest.mark.slow
def test_prototypes_stay_equal_only_where_they_are_moved_together(tmp_path: Path) -> None:
    assert synchronization.main(["--seeds", "0", "--epochs", "3", "--out", str(tmp_path)]) == 0
    together, alone = json.loads((tmp_path / synchronization.RESULT).read_text())["results"]
    assert all(value == pytest.approx(0, abs=1e-6) for _, value in together["distances"])
    assert alone["distances"][-1][1] > 1e-4
    assert (tmp_path / synchronization.PICTURE).stat().st_size > 10_000
