"""Sweeps of trainings: resumable, paired, and summed up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brpg_lib.benchmarks import accuracy, accuracy_report
from brpg_lib.benchmarks.accuracy_rows import CEILING, FLOOR, Row, differences
from brpg_lib.examples.training.recipe import Recipe


def made_up(row: Row, seed: int, miou: float) -> dict[str, Any]:
    settings = Recipe(framework=row.framework, data="digits", seed=seed, epoch_steps=4, size=33, batch_size=2)
    return {
        "variant": row.variant,
        "settings": settings.to_dict() | {"all_labels": row == CEILING},
        "environment": {"device": "a CPU", "threads": 2, "versions": {"torch": "2.9"}},
        "steps": 4,
        "seconds": 60.0 + seed,
        "peak_memory_mb": 900.0,
        "class_names": ["background", "digit"],
        "miou": miou,
        "boundary_miou": miou - 2,
        "iou": [miou, None],
        "boundary_iou": [miou, None],
        "student": {"miou": miou - 1, "boundary_miou": miou - 3},
    }


PLAIN, WITH_HEAD = Row("u2pl", "no head"), Row("u2pl", "BRPG")


def sweep(ceiling: float = 10.0, gains: tuple[float, ...] = (1.0, 2.0, 3.0)) -> list[dict[str, Any]]:
    """Labels alone at 30 + seed, unlabeled images 2 above them, the head by its gains above these."""
    found = []
    for seed, gain in enumerate(gains):
        plain = 2 + 0.1 * seed
        values = {FLOOR: 0.0, CEILING: ceiling, PLAIN: plain, WITH_HEAD: plain + gain}
        found += [made_up(row, seed, 30 + seed + value) for row, value in values.items()]
    return found


RESULTS = sweep()


def test_gains_are_those_of_pairs() -> None:
    assert differences(RESULTS, WITH_HEAD, "miou") == pytest.approx([1.0, 2.0, 3.0])
    assert differences(RESULTS, PLAIN, "miou") == pytest.approx([2.0, 2.1, 2.2])
    without_first = [r for r in RESULTS if (r["variant"], r["settings"]["seed"]) != ("no head", 0)]
    assert differences(without_first, WITH_HEAD, "miou") == pytest.approx([2.0, 3.0]), "only complete pairs"
    assert differences(RESULTS, Row("unimatch", "BRPG"), "miou") == []
    assert differences(RESULTS, FLOOR, "miou") == []
    assert accuracy_report.mean_and_deviation([1.0, 2.0, 3.0]) == "2.0 ± 1.0"


def test_sentences_say_what_is_known_and_what_is_not() -> None:
    room, plain, head = accuracy_report.sentences(RESULTS)
    assert "all labels reach +10.0 [+10.0, +10.0] mIoU over labels alone (3 seeds)" in room
    assert "u2pl: unlabeled images add +2.1 [+1.9, +2.3] mIoU (21% of the room; 3 seeds)" in plain
    assert "Cannot tell" not in plain
    assert "u2pl: BRPG adds +2.0 [-0.5, +4.5] mIoU (20% of the room; 3 seeds)" in head  # 4.303 / sqrt(3) = 2.48
    assert "Cannot tell yet: about 2 more seeds would tell a difference of this size" in head
    single = accuracy_report.sentences(sweep(gains=(1.0,)))
    assert "One seed: other seeds may well differ" in single[-1]


@pytest.mark.parametrize("ceiling", [1.0, -3.0])
def test_without_room_no_gain_is_stated(ceiling: float) -> None:
    results = sweep(ceiling)
    room, refusal = accuracy_report.sentences(results)
    assert f"{ceiling:+.1f}" in room
    assert "no room" in refusal
    assert "no gain is stated" in refusal
    lines = {line.split(" | ")[0]: line for line in accuracy_report.scores(results).markdown().splitlines()}
    assert "[" not in lines["| u2pl + BRPG"]


def test_without_both_references_nothing_is_said() -> None:
    (said,) = accuracy_report.sentences([made_up(PLAIN, 0, 30.0), made_up(FLOOR, 0, 29.0)])
    assert "nothing can be said of gains" in said


def test_page(tmp_path: Path) -> None:
    accuracy_report.write(RESULTS, tmp_path)
    page = (tmp_path / accuracy_report.PAGE).read_text()
    assert "| u2pl + BRPG | 3 | 35.1 ± 2.1 | +2.0 [-0.5, +4.5] |" in page
    assert "| background | 31.0 | +2.1 | +2.0 | +10.0 |" in page
    assert "| digit |  |" in page
    assert (tmp_path / accuracy_report.PICTURE).stat().st_size > 5000


def test_variants_differ_from_the_head_in_what_they_say() -> None:
    arguments = accuracy.parser().parse_args(
        ["--seeds", "0", "--frameworks", "u2pl", "--set", "momentum=0.9", "--variants", *accuracy.VARIANTS]
    )
    arguments.set = dict(arguments.set)
    runs = {training.variant: training.recipe for training in accuracy.trainings_of(arguments)}

    def all_of(recipe: Recipe) -> dict[str, Any]:
        return {name: value for name, value in recipe.to_dict().items() if name != "head"} | recipe.brpg.to_dict()

    plain = all_of(runs["BRPG"])
    assert plain["momentum"] == 0.9
    for variant, changes in accuracy.CHANGES.items():
        found = all_of(runs[variant])
        differing = {name for name in plain if plain[name] != found[name]}
        assert differing == changes.keys(), variant
    assert runs["no head"].head == runs["labels alone"].head
    assert runs["no head"].brpg.momentum != 0.9
    assert runs["all labels"].all_labels


@pytest.mark.slow
def test_a_sweep_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--frameworks", "mean_teacher", "--seeds", "0", "--steps", "6", "--batch-size", "2", "--device", "cpu"]
    options += ["--jobs", "2", "--network", "compact", "--size", "33"]
    command = [*options, "--out", str(tmp_path)]
    assert accuracy.main(command) == 0
    files = sorted(path.name for path in tmp_path.glob("*.json"))
    assert files == [
        "digits_all-labels_seed0.json",
        "digits_labels-alone_seed0.json",
        "digits_mean_teacher_BRPG_seed0.json",
        "digits_mean_teacher_no-head_seed0.json",
    ]
    assert not list(tmp_path.glob("*.pt"))
    found = json.loads((tmp_path / files[0]).read_text())
    assert found["steps"] == 6
    assert len(found["iou"]) == len(found["class_names"]) == 11

    def unwanted(*arguments: Any, **options: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(accuracy, "run_apart", unwanted)
    assert found["settings"].pop("palette") is None
    (tmp_path / files[0]).write_text(json.dumps(found))  # as a version wrote it that did not know the setting
    assert accuracy.main(command) == 0
    assert "mean_teacher + BRPG" in (tmp_path / accuracy_report.PAGE).read_text()
    capsys.readouterr()
    assert accuracy.main([*command, "--set", "temperature=0.5"]) == 2
    assert "made with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "warmth=3"], "head.warmth: "),
        (["--set", "temperature=hot"], "temperature: expected a number"),
        (["--jobs", "0"], "--jobs: expected at least 1, found 0"),
        (["--data", "camvid", "--splits", "1_8_seed{seed}"], "camvid needs root"),
    ],
)
def test_wrong_usage(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main([*options, "--seeds", "0", "--steps", "2", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["temperature", "num_prototypes=[1,"])
def test_wrong_setting(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        accuracy.parser().parse_args(["--set", text])
    assert "expected NAME=VALUE" in (err := capsys.readouterr().err) or "is not JSON" in err
