"""Sweeps of trainings: resumable, paired, and summed up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brpg_lib.benchmarks import accuracy, accuracy_report
from brpg_lib.examples.settings import Settings


def made_up(framework: str, variant: str, seed: int, miou: float) -> dict[str, Any]:
    settings = Settings(framework=framework, data="digits", seed=seed, iterations=4, size=33, batch_size=2)
    return {
        "variant": variant,
        "settings": settings.to_dict(),
        "environment": {"device": "a CPU", "threads": 2, "versions": {"torch": "2.9"}},
        "seconds": 60.0 + seed,
        "peak_memory_mb": 900.0,
        "class_names": ["background", "digit"],
        "miou": miou,
        "boundary_miou": miou - 2,
        "iou": [miou, None],
        "boundary_iou": [miou, None],
    }


RESULTS = [
    made_up("u2pl", variant, seed, 30 + seed + gain)
    for seed, gains in enumerate([(0.0, 1.0), (0.0, 2.0), (0.0, 3.0)])
    for variant, gain in zip(("no head", "BRPG"), gains, strict=True)
]


def test_gains_are_those_of_pairs() -> None:
    assert accuracy_report.differences(RESULTS, "u2pl", "BRPG", "miou") == [1.0, 2.0, 3.0]
    assert accuracy_report.differences(RESULTS[1:], "u2pl", "BRPG", "miou") == [2.0, 3.0], "only complete pairs"
    assert accuracy_report.differences(RESULTS, "unimatch", "BRPG", "miou") == []


def test_mean_and_deviation() -> None:
    assert accuracy_report.mean_and_deviation([1.0, 2.0, 3.0]) == "2.0 ± 1.0"


def test_page(tmp_path: Path) -> None:
    accuracy_report.write(RESULTS, tmp_path)
    page = (tmp_path / accuracy_report.PAGE).read_text()
    assert "| u2pl, BRPG | 3 | 33.0 ± 2.0 | +2.0 [-0.5, +4.5] |" in page
    assert "| background | 31.0 +2.0 |" in page
    assert "| digit |  |" in page
    assert (tmp_path / accuracy_report.PICTURE).stat().st_size > 5000


def test_variants_differ_from_the_head_in_what_they_say() -> None:
    arguments = accuracy.parser().parse_args(
        ["--seeds", "0", "--frameworks", "u2pl", "--set", "momentum=0.9", "--variants", *accuracy.VARIANTS]
    )
    arguments.set = dict(arguments.set)
    runs = {run.variant: run.settings for run in accuracy.runs_of(arguments)}
    plain = runs["BRPG"].brpg.to_dict() | {"recluster_every": runs["BRPG"].schedule.recluster_every}
    assert plain["momentum"] == 0.9
    for variant in accuracy.ABLATIONS:
        found = runs[variant].brpg.to_dict() | {"recluster_every": runs[variant].schedule.recluster_every}
        differing = {name for name in plain if plain[name] != found[name]}
        assert len(differing) == 1, variant
    assert runs["three times the loss weight"].brpg.loss_weight == pytest.approx(3 * plain["loss_weight"])


def test_a_sweep_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--frameworks", "supervised", "--seeds", "0", "--budget", "6", "--batch-size", "2", "--device", "cpu"]
    options += ["--jobs", "2"]
    command = [*options, "--out", str(tmp_path)]
    assert accuracy.main(command) == 0
    files = sorted(path.name for path in tmp_path.glob("*.json"))
    assert files == ["digits_supervised_BRPG_seed0.json", "digits_supervised_no-head_seed0.json"]
    assert not list(tmp_path.glob("*.pt"))
    found = json.loads((tmp_path / files[0]).read_text())
    assert found["settings"]["iterations"] == 6
    assert len(found["iou"]) == len(found["class_names"]) == 11

    def unwanted(*arguments: Any, **options: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(accuracy, "run_apart", unwanted)
    assert accuracy.main(command) == 0
    assert "supervised, BRPG" in (tmp_path / accuracy_report.PAGE).read_text()
    capsys.readouterr()
    assert accuracy.main([*command, "--set", "temperature=0.5"]) == 2
    assert "made with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "warmth=3"], "overrides: expected fields of BRPGConfig or Schedule, found warmth"),
        (["--set", "temperature=hot"], "temperature: expected a number"),
        (["--jobs", "0"], "--jobs: expected at least 1, found 0"),
        (["--data", "camvid", "--splits", "1_8_seed{seed}"], "camvid needs root"),
    ],
)
def test_wrong_usage(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main([*options, "--seeds", "0", "--budget", "2", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["temperature", "num_prototypes=[1,"])
def test_wrong_setting(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        accuracy.parser().parse_args(["--set", text])
    assert "expected NAME=VALUE" in (err := capsys.readouterr().err) or "is not JSON" in err
