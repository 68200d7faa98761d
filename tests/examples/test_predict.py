"""`brpg predict`: a folder of images becomes one of predictions."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import random_images, same
from PIL import Image

from brpg_lib.cli import main as brpg
from brpg_lib.examples import predict as command
from brpg_lib.examples import train
from brpg_lib.examples.training.data import digits
from brpg_lib.examples.training.evaluation import classes_of
from brpg_lib.examples.training.loop import Run
from brpg_lib.examples.training.prediction import Predicted, predict
from brpg_lib.examples.training.processes import Processes
from brpg_lib.examples.training.recipe_files import read_recipe
from brpg_lib.examples.training.reports.prediction import Maps, Pages
from brpg_lib.examples.training.trained import load_trained
from brpg_lib.inspection import read_heads

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)
TINY = """
data: digits
network: compact
pretrained: false
size: 33
batch_size: 2
epochs: 4
validate_every: 4
feature_dim: 8
learning_rate: 0.01
new_factor: 1
head: {queue_size: 50, samples_per_image: 50, unlabeled_samples_per_image: 50, grid_size: 8}
"""


# --- Checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny training with the head: last.pt and best.pt."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(digits, "SCENES", {"labeled": 4, "unlabeled": 8, "test": 4})
        command = [str(folder / "tiny.yaml"), "--workers", "0", "--device", "cpu", "--out", str(folder)]
        assert train.main(command) == 0
    return folder


def changed(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with other entries; None removes one."""
    saved = torch.load(source, weights_only=True) | changes
    torch.save({name: value for name, value in saved.items() if value is not None}, target)
    return target


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_checkpoints_carry_all_that_predicts(name: str, trained: Path) -> None:
    found = load_trained(trained / name)
    saved = torch.load(trained / name, weights_only=True)
    weights = saved["model"] if "model" in saved else saved["parts"]["trainer"]
    for key, value in found.network.state_dict().items():
        assert torch.equal(value, weights[key if "model" in saved else f"average.{key}"])
    assert not found.network.training
    assert found.class_names == digits.CLASS_NAMES
    assert found.recipe == read_recipe(str(trained / "tiny.yaml"))
    (head,) = read_heads(trained / name)
    assert head.names == digits.CLASS_NAMES
    assert found.bank is not None
    assert torch.equal(found.bank.mask, head.mask)
    assert torch.equal(found.bank.prototypes, head.prototypes)
    assert not any(key.startswith("queue.features") for key in saved.get("head", {})), "rows are for who goes on"


def test_a_checkpoint_before_there_are_prototypes(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "SCENES", {"labeled": 4, "unlabeled": 8, "test": 4})
    with torch.random.fork_rng():
        for name, with_head in (("with", True), ("without", False)):
            Run(read_recipe(str(trained / "tiny.yaml")), with_head, tmp_path / f"{name}.pt", ALONE, 0).save()
    for name in ("with", "without"):
        assert load_trained(tmp_path / f"{name}.pt").bank is None


def test_a_training_that_is_done_is_written_anew(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that a checkpoint of an older version can predict."""
    monkeypatch.setattr(digits, "SCENES", {"labeled": 4, "unlabeled": 8, "test": 4})
    old = changed(trained / "last.pt", tmp_path / "last.pt", class_names=None)
    with pytest.raises(ValueError, match=r"written by an older version of brpg-lib, .* again with --resume"):
        load_trained(old)
    arguments = [str(trained / "tiny.yaml"), "--workers", "0", "--device", "cpu", "--out", str(tmp_path), "--resume"]
    with torch.random.fork_rng():
        assert train.main(arguments) == 0
    assert same(torch.load(old, weights_only=True), torch.load(trained / "last.pt", weights_only=True))
    assert load_trained(old).class_names == digits.CLASS_NAMES


# --- The command ------------------------------------------------------------------------------------------------------


def write(path: Path, height: int, width: int, seed: int = 0, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random_images(1, height, width, seed)[0].movedim(0, 2).numpy()
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    write(folder / "a.png", 33, 33, 1)
    write(folder / "b.png", 33, 33, 2)
    write(folder / "city/c.jpg", 50, 70, 3)
    write(folder / "city/d.v2.png", 40, 20, 4, "P")
    write(folder / "gray.png", 33, 40, 5, "L")
    write(folder / "clear.png", 33, 33, 6, "RGBA")
    (folder / "notes.txt").write_text("no image")
    write(folder / ".hidden.png", 9, 9)
    return folder


NAMES = ("a", "b", "city/c", "city/d.v2", "gray", "clear")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(trained: Path, images: Path, out: Path, *options: str, name: str = "last.pt") -> int:
    return command.main([str(trained / name), str(images), "--out", str(out), "--device", "cpu", *options])


@pytest.mark.parametrize(
    "options", [(), ("--prototypes",), ("--window", "17"), ("--batch-size", "1", "--workers", "1")]
)
def test_a_folder_of_images(
    options: tuple[str, ...], trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(trained, images, out, *options) == 0
    found = load_trained(trained / "last.pt")
    rows = {row["name"]: row for row in rows_of(out)}
    assert set(rows) == set(NAMES)
    for name in NAMES:
        (path,) = images.glob(f"{name}.[pj]*g")
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(2, 0)
        window = 17 if "--window" in options else None
        expected = predict(found.network, image[None], bank=found.bank, window=window)
        mask = Image.open(out / f"masks/{name}.png")
        assert mask.mode == "P"
        assert np.array_equal(np.array(mask), expected.classes("--prototypes" in options)[0].numpy())
        entropy = np.array(Image.open(out / f"entropy/{name}.png"))
        assert np.abs(entropy - 255 * expected.entropy()[0].numpy()).max() <= 1
        agrees = (expected.classes() == expected.classes(True))[0]
        assert np.array_equal(np.array(Image.open(out / f"agreement/{name}.png")), agrees.numpy())
        assert Image.open(out / f"overlays/{name}.jpg").size == mask.size == (image.shape[2], image.shape[1])
        row = rows[name]
        assert (row["image"], row["width"], row["height"]) == (str(path), str(image.shape[2]), str(image.shape[1]))
        assert float(row["mean_entropy"]) == pytest.approx(float(expected.entropy().mean()), abs=2e-6)
        assert float(row["disagreement"]) == pytest.approx(1 - float(agrees.float().mean()), abs=2e-6)
        shares = [float(row[f"share {name}"]) for name in digits.CLASS_NAMES]
        assert shares == pytest.approx(
            np.bincount(np.array(mask).ravel(), minlength=11) / np.array(mask).size, abs=2e-6
        )
    entropies = [float(row["mean_entropy"]) for row in rows_of(out)]
    assert entropies == sorted(entropies, reverse=True)
    assert Image.open(out / "legend.png").width > 50
    assert "6 of 6 images to predict on cpu" in capsys.readouterr().out
    assert not list(out.rglob("*.partial"))


def test_every_class_has_a_color_of_its_own(tmp_path: Path) -> None:
    classes = torch.arange(21, dtype=torch.uint8).view(3, 7)
    maps = Maps(classes, torch.linspace(0, 1, 21).view(3, 7), classes > 9)
    pages = Pages(tmp_path, [f"class {index}" for index in range(21)], compares=True)
    row = pages.write("in/a", Path("a.jpg"), random_images(1, 3, 7)[0], maps)
    written = {kind: Image.open(path) for kind, path in pages.files("in/a").items()}
    assert np.array_equal(np.array(written["masks"]), classes.numpy())
    assert len(np.unique(np.array(written["masks"].convert("RGB")).reshape(-1, 3), axis=0)) == 21
    assert np.array(written["entropy"]).ravel().tolist() == [round(255 * index / 20) for index in range(21)]
    brightness = np.array(written["entropy"].convert("L")).ravel()
    assert (np.diff(brightness.astype(int)) > 0).all(), "the more doubt, the brighter"
    assert float(row["disagreement"]) == pytest.approx(10 / 21, abs=1e-6)
    assert (row["share class 20"], row["height"], row["width"]) == (f"{1 / 21:.6f}", "3", "7")


def test_images_are_shown_as_reduced_as_in_the_training(trained: Path, images: Path, tmp_path: Path) -> None:
    recipe = read_recipe(str(trained / "tiny.yaml"), {"short_side": 20}).to_dict()
    changed(trained / "last.pt", tmp_path / "small.pt", recipe=recipe)
    assert command.main([str(tmp_path / "small.pt"), str(images / "city/c.jpg"), "--out", str(tmp_path / "out")]) == 0
    mask = np.array(Image.open(tmp_path / "out/masks/c.png"))
    assert mask.shape == (50, 70)
    small = Image.open(images / "city/c.jpg").resize((28, 20), Image.Resampling.BILINEAR)
    found = load_trained(tmp_path / "small.pt")
    expected = predict(found.network, torch.from_numpy(np.array(small)).movedim(2, 0)[None]).enlarged((50, 70))
    assert np.array_equal(mask, expected.classes()[0].numpy())


def test_without_a_head_there_is_nothing_to_disagree(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(trained / "best.pt", tmp_path / "plain.pt", head=None)
    assert run(tmp_path, images, tmp_path / "out", name="plain.pt") == 0
    assert not (tmp_path / "out/agreement").exists()
    rows = rows_of(tmp_path / "out")
    assert {row["disagreement"] for row in rows} == {""}
    entropies = [float(row["mean_entropy"]) for row in rows]
    assert entropies == sorted(entropies, reverse=True)
    assert run(tmp_path, images, tmp_path / "other", "--prototypes", name="plain.pt") == 2
    assert "--prototypes:" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_what_is_there_is_not_predicted_again(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = images / "predicted"  # a folder among the images, whose pictures are none to predict
    assert run(trained, images, out) == 0
    before = files_below(out)
    assert run(trained, images, out) == 0
    assert "0 of 6 images" in capsys.readouterr().out
    assert files_below(out) == before
    (out / "entropy/a.png").unlink()
    (out / "masks/b.png").write_bytes(b"not looked into")
    write(images / "new.png", 20, 20, 9)
    later = (out / "masks/gray.png").stat().st_mtime + 60
    os.utime(images / "gray.png", (later, later))
    assert run(trained, images, out) == 0
    assert "3 of 7 images" in capsys.readouterr().out, "one output is missing, one image is new, one is newer"
    assert (out / "masks/b.png").read_bytes() == b"not looked into"
    assert run(trained, images, out, "--overwrite") == 0
    after = files_below(out)
    assert {name: after[name] for name in before if name != "index.csv"} == {
        name: content for name, content in before.items() if name != "index.csv"
    }
    assert len(rows_of(out)) == 7


def test_an_interrupted_prediction_goes_on(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(trained, images, tmp_path / "whole") == 0
    seen = []

    def interrupted(*arguments: Any, **options: Any) -> Predicted:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(arguments)
        return predict(*arguments, **options)

    monkeypatch.setattr(command, "predict", interrupted)
    assert run(trained, images, tmp_path / "parts", "--batch-size", "1") == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "parts")) == 3
    monkeypatch.undo()
    assert run(trained, images, tmp_path / "parts") == 0
    assert "3 of 6 images" in capsys.readouterr().out
    whole, parts = files_below(tmp_path / "whole"), files_below(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(whole[name] == parts[name] for name in whole if name.startswith("masks"))


def test_predictions_of_another_checkpoint_are_not_mixed_in(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(trained, images, out) == 0
    before = files_below(out)
    names = [f"other {index}" for index in range(11)]
    other = changed(trained / "best.pt", tmp_path / "other.pt", class_names=names, head=None)
    renamed = changed(trained / "best.pt", tmp_path / "renamed.pt", class_names=names)
    for options, what in (((), "checkpoint"), (("--prototypes",), "checkpoint, --prototypes")):
        assert run(tmp_path, images, out, *options, name=renamed.name) == 2
        assert f"with another {what}; --overwrite removes them" in capsys.readouterr().err
    assert run(trained, images, out, "--window", "17") == 2
    assert "with another --window" in capsys.readouterr().err
    assert files_below(out) == before
    assert command.main([str(other), str(images / "a.png"), "--out", str(out), "--overwrite"]) == 0
    assert [row["name"] for row in rows_of(out)] == ["a"]
    left = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert [name for name in left if "/" in name] == ["entropy/a.png", "masks/a.png", "overlays/a.jpg"], "no others"


def test_damaged_images_are_named_and_left_out(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (images / "city/c.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "empty.png").write_bytes(b"")
    (images / "text.png").write_text("no image")
    flipped = bytearray((images / "a.png").read_bytes())
    flipped[60] ^= 255
    (images / "flipped.png").write_bytes(flipped)
    for _ in range(2):  # the second time, they are all that is left
        assert run(trained, images, tmp_path / "out") == 1
        said = capsys.readouterr().err
        for name in ("cut.jpg", "empty.png", "text.png", "flipped.png"):
            assert str(images / name) in said
        assert "4 images could not be read and were left out" in said
        assert sorted(row["name"] for row in rows_of(tmp_path / "out")) == sorted(NAMES)


def test_what_is_said_about_wrong_usage(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "twins/a.png", 9, 9)
    write(tmp_path / "twins/a.jpg", 9, 9)
    (tmp_path / "nothing").mkdir()
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    changed(trained / "last.pt", tmp_path / "newer.pt", recipe={"data": "digits", "unheard": 3})
    changed(trained / "best.pt", tmp_path / "cut.pt", model={"conv.weight": torch.zeros(3)})
    last, good = str(trained / "last.pt"), str(images)
    cases: list[tuple[list[str], str]] = [
        (["missing.pt", good], "missing.pt"),
        ([str(images / "a.png"), good], "is no checkpoint, or damaged"),
        ([str(tmp_path / "foreign.pt"), good], "expected a checkpoint of brpg train or brpg demo"),
        ([str(tmp_path / "newer.pt"), good], "unheard"),
        ([str(tmp_path / "cut.pt"), good], "its weights are not those of a compact"),
        ([last, str(tmp_path / "nowhere")], "no such file or folder"),
        ([last, str(tmp_path / "nothing")], "no images (.jpg"),
        ([last, str(tmp_path / "twins")], "both would be a in"),
        ([last, good, str(tmp_path / "twins/a.png")], "both would be a in"),
        ([last, good, "--window", "3"], "--window: expected at least 17, found 3"),
        ([last, good, "--batch-size", "0"], "--batch-size: expected at least 1, found 0"),
        ([last, good, "--workers", "-1"], "--workers: expected at least 0, found -1"),
        ([last, good, "--device", "quantum"], "quantum"),
    ]
    for arguments, message in cases:
        assert command.main([*arguments, "--out", str(tmp_path / "out")]) == 2, arguments
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1, said
        assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("in the way")
    assert command.main([last, good, "--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


def test_the_same_image_twice_is_one(trained: Path, images: Path, tmp_path: Path) -> None:
    again = [str(images / "a.png"), str(images), str(images / "a.png")]
    assert brpg(["predict", str(trained / "last.pt"), *again, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert len(rows_of(tmp_path / "out")) == 6
    assert json.loads((tmp_path / "out/prediction.json").read_text())["window"] is None


def test_scores_are_of_the_same_predictions(trained: Path) -> None:
    found, image = load_trained(trained / "last.pt"), random_images(1, 33, 40)[0]
    for window in (None, 17):
        expected = predict(found.network, image[None], window=window).classes()[0]
        assert torch.equal(classes_of(found.network, image, CPU, window), expected)


@pytest.mark.cuda
def test_a_gpu_predicts_the_same(trained: Path, images: Path, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        command_line = [str(trained / "last.pt"), str(images), "--out", str(tmp_path / device), "--device", device]
        assert command.main(command_line) == 0
    for name in NAMES:
        one, other = (np.array(Image.open(tmp_path / device / f"masks/{name}.png")) for device in ("cpu", "cuda"))
        assert (one == other).mean() > 0.99
