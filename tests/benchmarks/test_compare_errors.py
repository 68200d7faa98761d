"""What `brpg compare` refuses, and how it says so: file, field, expected, found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainings import confusion, counts, result, sides, table, training, write

from brpg_lib.benchmarks.compare import command

Places = tuple[object, ...]


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert command.main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("brpg compare: ")
    assert not (tmp_path / "out").exists(), "nothing is written"
    return said


def folders(*before_after: tuple[dict[str, Any], ...]) -> Callable[[Path], Places]:
    return lambda path: tuple(write(path / str(i), *results) for i, results in enumerate(before_after))


def rows(text: str) -> Callable[[Path], Places]:
    def made(path: Path) -> Places:
        (path / "runs.csv").write_text(text)
        return (path / "runs.csv",)

    return made


def changed(found: dict[str, Any], **changes: Any) -> dict[str, Any]:
    kept = {**found, **changes}
    return {name: value for name, value in kept.items() if value != "missing"}


def arrays(before: dict[str, Any], after: dict[str, Any]) -> Callable[[Path], Places]:
    def made(path: Path) -> Places:
        for name, side in (("without", before), ("with", after)):
            np.savez(path / f"{name}.npz", **side)
        return path / "without.npz", path / "with.npz"

    return made


GOOD = [result("no head", seed, 60) for seed in range(2)]
HEAD = [result("BRPG", seed, 61) for seed in range(2)]
MATRICES = confusion(0, 0.0)
HEADING = "seed,variant,score\n"

JSON_CASES = {
    "missing partner": (
        folders(tuple(GOOD), tuple(HEAD[:1])),
        ["0/run1/result.json: seed 1 has 'no head', but not 'BRPG'", "--allow-unpaired leaves them out"],
    ),
    "no pair at all": (
        folders((GOOD[0],), (result("BRPG", 5, 60),)),
        ["found 2 without partner, and there is no pair at all", "seed 5 has 'BRPG'"],
    ),
    "other settings": (
        folders((GOOD[0],), (result("BRPG", 0, 61, epoch_steps=8, network="resnet50"),)),
        ["partners that differ in the head only, found different network, epoch_steps (network: "],
    ),
    "another split": (
        folders(
            (result("no head", 0, 60, data="voc", root="x", split="1/8"),),
            (result("BRPG", 0, 60, data="voc", root="x", split="1/4"),),
        ),
        ["expected the same setting (split) for seed 0, found 1/8 and 1/4"],
    ),
    "twice": (
        folders((*GOOD, GOOD[1]), tuple(HEAD)),
        ["expected one training of 'no head' with seed 1", "found another in"],
    ),
    "two heads": (
        folders(tuple(GOOD), (HEAD[0], result("BRPG", 1, 61, head={"temperature": 0.3}))),
        ["expected one head in all trainings of 'BRPG', found different head"],
    ),
    "NaN": (folders((changed(GOOD[0], miou=float("nan")),), (HEAD[0],)), ["miou: expected a finite number, found nan"]),
    "None": (folders((GOOD[0],), (changed(HEAD[0], miou=None),)), ["miou: expected a finite number, found nothing"]),
    "no score": (
        folders((GOOD[0],), (changed(HEAD[0], miou="missing"),)),
        ["miou: expected a finite number, found nothing"],
    ),
    "text": (
        folders((GOOD[0],), (changed(HEAD[0], iou=[1.0, "high", None]),)),
        ["iou of digit: expected a finite number, found 'high'"],
    ),
    "iou too short": (folders((GOOD[0],), (changed(HEAD[0], iou=[1.0]),)), ["iou: expected one number for each of 3"]),
    "other classes": (
        folders((GOOD[0],), (changed(HEAD[0], class_names=["background", "digit", "pole"]),)),
        ["class names: expected the 3 of", "(different: absent, pole)"],
    ),
    "two scales": (
        folders((GOOD[0],), (changed(HEAD[0], miou=0.61, boundary_miou=0.6, iou=[0.5, 0.5, None]),)),
        ["scores on different scales: expected 0 to 1 in all runs or 0 to 100 in all", "mIoU 0.61", "mIoU 60"],
    ),
    "above 100": (
        folders((changed(GOOD[0], miou=101),), (HEAD[0],)),
        ["mIoU: expected a number from 0 to 100", "found 101"],
    ),
    "one variant": (folders((*GOOD,)), ["expected variants besides 'no head', found 'no head'"]),
    "no baseline": (folders((*HEAD,)), ["expected the variant 'no head' to compare with, found 'BRPG'"]),
    "two baselines": (
        folders((*GOOD, *HEAD), (*HEAD,)),
        ["expected trainings of one variant, found 'no head', 'BRPG'"],
    ),
    "mixed second place": (
        folders((*GOOD,), (*HEAD, GOOD[0])),
        ["expected trainings besides 'no head' in the second place"],
    ),
    "no validation": (
        folders((training(False, 0, 50),), (changed(training(True, 0, 50), validations=[]),)),
        ["validations: expected at least one, found none"],
    ),
    "no result": (folders((GOOD[0],), ({"speed": 3},)), ["expected the result of a training", "found speed"]),
    "no seed": (
        folders((GOOD[0],), (changed(HEAD[0], settings={"framework": "u2pl"}),)),
        ["settings: seed: expected a number, found nothing"],
    ),
}
CSV_CASES = {
    "no number": (
        rows(HEADING + "0,no head,high\n"),
        ["runs.csv, row 2: score: expected a finite number, found 'high'"],
    ),
    "empty cell": (rows(HEADING + "0,no head,\n"), ["row 2: score: expected a finite number, found an empty cell"]),
    "nan": (rows(HEADING + "0,no head,nan\n"), ["row 2: score: expected a finite number, found 'nan'"]),
    "no seed": (rows("run,variant,score\n0,no head,1\n"), ["expected a column seed, found run, variant, score"]),
    "no variant": (rows("seed,score\n0,1\n"), ["expected a column variant, found seed, score (or give two files"]),
    "no scores": (rows("seed,variant\n0,BRPG\n"), ["expected a column of scores"]),
    "two names": (rows("seed,variant,score,score\n"), ["expected different names, found 'score' twice"]),
    "short row": (rows(HEADING + "0,no head\n"), ["row 2: expected 3 cells as in the heading, found 2"]),
    "no rows": (rows(HEADING), ["expected a row per training, found a heading only"]),
    "empty": (rows(""), ["found an empty file"]),
    "no name": (rows(HEADING + "0,,50\n"), ["row 2: variant: expected a value, found an empty cell"]),
    "twice": (
        rows(HEADING + "0,no head,50\n0,BRPG,51\n0,BRPG,52\n"),
        ["runs.csv, row 4: expected one training of 'BRPG' with seed 0, found another in", "row 3"],
    ),
    "two scales": (rows(HEADING + "0,no head,50\n0,BRPG,0.51\n"), ["row 3 has score 0.51 and", "row 2 has score 50"]),
    "two scales in a row": (
        rows("seed,variant,score,edge\n0,no head,50,0.4\n0,BRPG,51,0.4\n"),
        ["edge: expected percent as in the other columns"],
    ),
    "score on another scale": (
        rows("seed,variant,score,iou:sky\n0,no head,0.5,40\n0,BRPG,0.5,40\n"),
        ["row 2: score: expected percent as the IoU of classes, found 0.5"],
    ),
    "classes on another scale": (
        rows("seed,variant,score,iou:sky\n0,no head,50,0.4\n0,BRPG,51,0.4\n"),
        ["IoU of classes: expected percent"],
    ),
}
COUNT_CASES = {
    "no array": (
        arrays({"matrix": MATRICES}, {"confusion": MATRICES}),
        ["without.npz: expected an array confusion, found matrix"],
    ),
    "shape": (
        arrays({"confusion": MATRICES[0]}, {"confusion": MATRICES}),
        ["expected the shape (images, C, C), found (3, 3)"],
    ),
    "floats": (
        arrays({"confusion": MATRICES / 2}, {"confusion": MATRICES}),
        ["expected integers (pixels), found float64"],
    ),
    "negative": (arrays({"confusion": -MATRICES}, {"confusion": MATRICES}), ["expected numbers of pixels, found -"]),
    "nothing": (
        arrays({"confusion": 0 * MATRICES}, {"confusion": MATRICES}),
        ["expected pixels of some class, found none"],
    ),
    "number of images": (arrays({"confusion": MATRICES}, {"confusion": MATRICES[1:]}), ["expected 40 images as in"]),
    "truth": (
        arrays(
            {"confusion": MATRICES},
            {"confusion": MATRICES + np.eye(3, dtype=int) * (np.arange(40) == 7)[:, None, None]},
        ),
        ["with.npz: confusion[7]: expected the ground truth of", "found other row sums"],
    ),
    "order": (
        arrays(
            {"confusion": MATRICES, "images": np.arange(40)},
            {"confusion": MATRICES, "images": np.roll(np.arange(40), 1)},
        ),
        ["images[0]: expected 0 as in", "found 39"],
    ),
    "class names": (
        arrays({"confusion": MATRICES, "class_names": np.array(["a", "b"])}, {"confusion": MATRICES}),
        ["class_names: expected 3 different names, found 2"],
    ),
    "other class names": (
        arrays({"confusion": MATRICES, "class_names": np.array(["a", "b", "c"])}, {"confusion": MATRICES}),
        ["class names: expected the 3 of"],
    ),
}
CASES = {
    f"{kind}, {name}": case
    for kind, cases in (("json", JSON_CASES), ("csv", CSV_CASES), ("npz", COUNT_CASES))
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, messages = CASES[name]
    said = refused(tmp_path, capsys, *make(tmp_path))
    for message in messages:
        assert message in said


def test_allow_unpaired_lists_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = sides(tmp_path)
    (after / "run2" / "result.json").unlink()
    arguments = [str(before), str(after), "--out", str(tmp_path / "out")]
    assert command.main([*arguments, "--allow-unpaired"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "over 2 pairs" in said
    assert "Left out, without partner:" in said
    assert "(no head, seed 2)." in said
    assert "Left out, without partner:" in (tmp_path / "out" / "compare.md").read_text()
    other = write(tmp_path / "other", *(result("BRPG", seed, 61, batch_size=4) for seed in range(3)))
    assert command.main([str(before), str(other), "--allow-unpaired", "--out", str(tmp_path / "out")]) == 2
    assert "found different batch_size (batch_size: 2 and 4)" in capsys.readouterr().err, "never these"


def test_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = sides(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "expected .json (results), .csv" in (said := refused(tmp_path, capsys, empty, after))
    assert "found an empty folder" in said
    (empty / "notes.txt").write_text("no results")
    assert "found notes.txt" in refused(tmp_path, capsys, empty, after)
    assert "notes.txt: expected .json" in refused(tmp_path, capsys, before, empty / "notes.txt")
    assert "nowhere: expected a folder or a file, found nothing" in refused(tmp_path, capsys, before, "nowhere")
    assert "expected two different places, found the same one twice" in refused(tmp_path, capsys, before, before)
    assert "expected one or two folders or files, found 3" in refused(tmp_path, capsys, before, after, empty)
    (empty / "broken.json").write_text("{")
    assert "broken.json: not JSON" in refused(tmp_path, capsys, before, empty)
    (empty / "broken.json").unlink()
    (empty / "broken.npz").write_bytes(b"PK\x03\x04")
    assert "broken.npz: not an .npz file of plain arrays" in refused(tmp_path, capsys, before, empty)
    counts(after / "counts.npz", MATRICES)
    assert "expected files of one kind, found .json and .npz" in refused(tmp_path, capsys, before, after)
    assert "expected two places with .npz files" in refused(tmp_path, capsys, after / "counts.npz")


def test_two_files_with_variants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [table(tmp_path / name, [(0, "BRPG", 50)]) for name in ("a.csv", "b.csv")]
    assert "expected no column variant where two files are given" in refused(tmp_path, capsys, *paths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "95"], "--level: expected a number in [0.5, 1), found 95.0"),
        (["--resamples", "3"], "--resamples: expected at least 100, found 3"),
        (["--bootstrap-seed", "-1"], "--bootstrap-seed: expected at least 0, found -1"),
        (["--baseline", "none"], "expected the variant 'none' (--baseline), found 'no head'"),
    ],
)
def test_options(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(tmp_path, capsys, *sides(tmp_path), *options)


def test_partners_on_different_machines_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = sides(tmp_path)
    path = after / "run0" / "result.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(changed(found, environment={**found["environment"], "versions": {"torch": "2.14"}})))
    assert command.main([str(before), str(after), "--out", str(tmp_path / "out")]) == 0
    assert "Partners ran with different torch (2.9 without, 2.14 with)" in " ".join(capsys.readouterr().out.split())
