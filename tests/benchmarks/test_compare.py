"""`brpg compare`: made-up trainings with a known difference, in every form that can be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainings import GAINS, confusion, counts, result, sides, table, training, write

from brpg_lib import cli
from brpg_lib.benchmarks.compare import command


def compared(tmp_path: Path, *places: object, options: Sequence[str] = ()) -> dict[str, Any]:
    out = tmp_path / "out"
    assert command.main([*map(str, places), "--out", str(out), "--json", str(tmp_path / "numbers"), *options]) == 0
    found: dict[str, Any] = json.loads((tmp_path / "numbers").read_text())
    return found


def headline(found: dict[str, Any], index: int = 0) -> dict[str, Any]:
    estimate: dict[str, Any] = found["comparisons"][index]["scores"][0]["estimates"][0]
    return estimate


def test_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = compared(tmp_path, *sides(tmp_path))
    estimate = headline(found)
    assert (estimate["mean"], estimate["count"], estimate["scope"]) == (pytest.approx(2), 3, "other seeds")
    assert estimate["low"] == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3)
    assert [score["name"] for score in found["comparisons"][0]["scores"]] == ["mIoU", "boundary IoU"]
    said = " ".join(capsys.readouterr().out.split())
    assert "BRPG (u2pl, digits): cannot tell yet: +2.0 mIoU [-0.5, +4.5] over 3 pairs (95% interval; speaks of" in said
    assert "About 2 more seeds would tell a difference of this size (t test, power 80%)." in said
    assert "The interval excludes gains above 4.5 and losses above 0.5." in said
    assert "Without ground truth in the test images, and left out: absent." in said
    assert "The intervals of all 2 classes hold simultaneously at 95% (Bonferroni: each at 97.5%)" in said
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "| background | 66.0 | 68.0 | +2.0 [-1.6, +5.6] |  |" in page
    assert "|  | 2 | 62.00 | 65.00 | +3.00 |" in page
    assert "![Pairs, difference and classes](compare.png)" in page
    assert (tmp_path / "out" / "compare.png").stat().st_size > 10000


def test_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, gains, verdict in (
        ("a", (1.0, 1.1, 0.9), "helps: +1.0 mIoU [+0.8, +1.2]"),
        ("b", (-1.0, -1.1, -0.9), "harms: -1.0 mIoU [-1.2, -0.8]"),
        ("c", (1.0, -1.0, 0.001), "No number of seeds worth running (up to 1000)"),
        ("d", (0.0, 0.0, 0.0), "no difference: +0.0 mIoU"),
        ("e", (0.7,), "one pair: +0.7 mIoU. \n  No interval can be had from one pair. Run at least two more"),
    ):
        compared(tmp_path / name, *sides(tmp_path / name, gains))
        assert "".join(verdict.split()) in "".join(capsys.readouterr().out.split()), name


def test_one_folder_with_variants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        result(variant, seed, 60 + seed + gain + 0.1 * (seed - 1), framework=framework, **changes)
        for seed in range(3)
        for framework in ("u2pl", "unimatch")
        for variant, gain, changes in (
            ("no head", 0, {}), ("BRPG", 1, {}), ("no split", -4, {"head": {"split_fraction": 0.0}})
        )
    ]  # fmt: skip
    folder = write(tmp_path / "all", *runs)
    found = compared(tmp_path, folder)
    assert [c["label"] + "/" + c["variant"] for c in found["comparisons"]] == [
        "u2pl, digits/BRPG", "unimatch, digits/BRPG", "u2pl, digits/no split", "unimatch, digits/no split"
    ]  # fmt: skip
    assert headline(found, 2)["mean"] == pytest.approx(-4)
    assert "4 comparisons, each with an interval of its own" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "out" / "compare-4.png").is_file()
    found = compared(tmp_path, folder, options=["--baseline", "BRPG"])
    assert [c["variant"] for c in found["comparisons"]] == ["no head", "no head", "no split", "no split"]
    assert headline(found, 2)["mean"] == pytest.approx(-5)
    (folder / "run0" / "numbers.json").write_text((tmp_path / "numbers").read_text())
    assert len(compared(tmp_path, folder)["comparisons"]) == 4, "our own results are no training"


def test_results_of_brpg_train(tmp_path: Path) -> None:
    before = write(tmp_path / "without", *(training(False, seed, 50) for seed in range(3)))
    after = write(tmp_path / "with", *(training(True, seed, 51 + seed) for seed in range(3)))
    found = compared(tmp_path, before, after)
    assert headline(found)["mean"] == pytest.approx(2), "of the last validations, not of the best"
    assert [score["name"] for score in found["comparisons"][0]["classes"]] == ["a", "b"]
    single = compared(tmp_path, before / "run1" / "result.json", after / "run1" / "result.json")
    assert (headline(single)["mean"], headline(single)["low"]) == (2, None)


def test_results_of_an_earlier_version_that_lacked_a_setting(tmp_path: Path) -> None:
    before = [training(False, seed, 50) for seed in range(3)]
    for found in before:
        assert found["recipe"].pop("palette") is None
    write(tmp_path / "without", *before)
    write(tmp_path / "with", *(training(True, seed, 52) for seed in range(3)))
    assert headline(compared(tmp_path, tmp_path / "without", tmp_path / "with"))["mean"] == pytest.approx(2)


def test_trainings_that_failed_are_still_in_percent(tmp_path: Path) -> None:
    before = write(tmp_path / "without", *(changed(seed, "no head", 0.5) for seed in range(3)))
    after = write(tmp_path / "with", *(changed(seed, "BRPG", 7.0 + seed) for seed in range(3)))
    assert headline(compared(tmp_path, before, after))["mean"] == pytest.approx(7.5)


def changed(seed: int, variant: str, miou: float) -> dict[str, Any]:
    return {**result(variant, seed, miou), "boundary_miou": miou / 2, "iou": [2 * miou + 0.5, 0.0, None]}


def test_splits_are_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def runs(variant: str, gains: dict[tuple[str, int], float]) -> list[dict[str, Any]]:
        return [
            result(variant, seed, 60 + gain, data="voc", root="x", split=split) for (split, seed), gain in gains.items()
        ]

    places = [(split, seed) for split in ("1/8", "1/4", "1/2") for seed in (0, 1)]
    before = write(tmp_path / "without", *runs("no head", dict.fromkeys(places, 0.0)))
    after = write(tmp_path / "with", *runs("BRPG", dict(zip(places, (1, 2, 2, 3, 3, 4), strict=True))))
    scores = compared(tmp_path, before, after)["comparisons"][0]["scores"][0]["estimates"]
    assert [(e["scope"], e["unit"], e["count"]) for e in scores] == [
        ("other settings, with these 2 seeds", "setting", 3),
        ("other seeds, on these 3 settings", "seed", 2),
    ]
    said = " ".join(capsys.readouterr().out.split())
    assert "over 6 pairs of 3 settings (95% interval; speaks of other settings, with these 2 seeds)" in said
    assert "mIoU, other seeds, on these 3 settings: +2.5 [-3.9, +8.9] (2 seeds), by itself: cannot tell yet." in said


def test_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heading = "seed,setting,variant,miou,boundary,iou:sky,iou:pole"
    rows = [
        (seed, "1/8", variant, 0.6 + 0.01 * seed + gain, 0.5, 0.9, "" if seed == 0 else 0.1 + gain)
        for seed in range(3)
        for variant, gain in (("no head", 0.0), ("BRPG", GAINS[seed] / 100))
    ]
    found = compared(tmp_path, table(tmp_path / "runs.csv", rows, heading))
    assert headline(found)["mean"] == pytest.approx(2), "points"
    assert "between 0 and 1; here they are shown in percent" in found["notes"][0]
    assert [score["pairs"] for score in found["comparisons"][0]["classes"]] == [3, 2]
    assert "pole (2 of 3 pairs)" in capsys.readouterr().out
    before = table(tmp_path / "without.csv", [(seed, 60 + seed) for seed in range(3)], "seed,score")
    after = table(tmp_path / "with.csv", [(seed, 60 + seed + GAINS[seed]) for seed in reversed(range(3))], "seed,score")
    assert headline(compared(tmp_path, before, after))["mean"] == pytest.approx(2)
    before.write_text(before.read_text().replace(",", ";"))
    assert headline(compared(tmp_path, before, after))["mean"] == pytest.approx(2), "another delimiter"


def test_confusion_matrices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"class_names": np.array(["sky", "road", "car"]), "images": np.array([f"{i}.png" for i in range(40)])}
    single = [counts(tmp_path / f"{better}.npz", confusion(0, better), **names) for better in (0.0, 0.2)]
    found = compared(tmp_path, *single, options=["--resamples", "1000"])["comparisons"][0]
    assert found["images"]["scope"] == "other images, not other seeds"
    assert 7 < found["images"]["low"] < found["images"]["mean"] < found["images"]["high"] < 8
    assert found["scores"][0]["estimates"][0]["low"] is None, "one pair says nothing of seeds"
    assert [score["name"] for score in found["classes"]] == ["sky", "road", "car"]
    for seed in range(3):
        counts(tmp_path / "without" / f"seed{seed}.npz", confusion(seed, 0.0))
        counts(tmp_path / "with" / f"seed{seed}.npz", confusion(seed, 0.2 + 0.025 * seed))
    capsys.readouterr()
    both = compared(tmp_path, tmp_path / "without", tmp_path / "with", options=["--resamples", "1000"])["comparisons"][
        0
    ]
    assert (both["scores"][0]["estimates"][0]["count"], both["images"]["count"]) == (3, 40)
    assert both["images"]["mean"] == pytest.approx(both["scores"][0]["estimates"][0]["mean"])
    assert "mIoU, other images, not other seeds: +" in " ".join(capsys.readouterr().out.split())
    again = compared(tmp_path, tmp_path / "without", tmp_path / "with", options=["--resamples", "1000"])["comparisons"][
        0
    ]
    assert again == both, "seeded"


def test_many_classes_with_long_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"a class | with a $ rather_long [bold]name of number {index}" for index in range(150)]
    rng = np.random.default_rng(0)
    rows = [
        (seed, variant, 50 + gain, *rng.uniform(20, 80, 150).round(2))
        for seed in range(3)
        for variant, gain in (("no head", 0), ("BRPG", seed))
    ]
    path = tmp_path / "runs.csv"
    table(path, rows, ",".join(["seed", "variant", "score", *(f"iou:{name}" for name in names)]))
    found = compared(tmp_path, path)
    assert len(found["comparisons"][0]["classes"]) == 150
    page = (tmp_path / "out" / "compare.md").read_text()
    assert page.count("rather_long") == 150
    assert (tmp_path / "out" / "compare.png").is_file()


def test_level(tmp_path: Path) -> None:
    found = compared(tmp_path, *sides(tmp_path), options=["--level", "0.5"])
    assert headline(found)["low"] == pytest.approx(2 - 0.8165 / 3**0.5, abs=1e-3)


def test_help_tells_defaults_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for part in ("examples:", "default: 0.95", "default: 10000", "default: runs/compare", "default: 'no head'"):
        assert part in said


def test_trainings_of_this_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = Path(command.__file__).parents[1] / "results" / "few-labels-digits-confirm"
    if not folder.is_dir():
        pytest.skip("the results are part of the checkout only")
    assert cli.main(["compare", str(folder), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    told = {row[0]: row[4:6] for row in rows if len(row) == 7}
    assert told["BRPG (mean_teacher, digits)"][1] == "cannot tell yet"
    for framework in ("mean_teacher", "u2pl", "unimatch"):
        assert told[f"points by class, weight 0.3 ({framework}, digits)"][1] == "helps"
