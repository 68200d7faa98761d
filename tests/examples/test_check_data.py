"""`brpg check-data`: what it finds in directories that nobody prepared, and that what it says to type works."""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import SIDE, classes_of, damage, folder, write_list, write_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from trees import cityscapes_tree, coco_tree, labels, voc_tree, write_image, write_lines

from brpg_lib import cli
from brpg_lib.examples import check_data, train
from brpg_lib.examples.training.data.checks.examination import examined
from brpg_lib.examples.training.data.checks.findings import Given


def checked(root: Path, capsys: pytest.CaptureFixture[str], *options: str, status: int | None = None) -> dict[str, Any]:
    """What it found, and that its status says whether there are problems."""
    left = check_data.main([str(root), "--json", *options])
    out = capsys.readouterr()
    found: dict[str, Any] = json.loads(out.out)
    assert left == (1 if found["problems"] else 0), found["problems"]
    assert status is None or left == status, found["problems"]
    return found


def problems(found: dict[str, Any]) -> list[str]:
    return [f"{problem['kind']}: {problem['text']} {' '.join(problem['files'])}" for problem in found["problems"]]


def test_a_folder_that_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f")
    found = checked(root, capsys, status=0)
    assert [found["layout"], found["images"], found["masks"], found["pairs"]] == ["folder", 16, 16, 16]
    assert found["sizes"] == {f"{SIDE}x{SIDE}": 16}
    assert list(found["values"]) == ["0", "1", "2"]
    assert sum(value["pixels"] for value in found["values"].values()) == 16 * SIDE**2
    assert found["commands"] == [f"brpg train folder/small --root {root} --num-classes 3"]
    training = found["training"]
    assert [training[name] for name in ("labeled", "unlabeled", "test", "crop", "steps")] == [3, 10, 3, 33, 1000]
    assert found["classes"][0]["labeled"]["images"] == 3


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("binary", ["--mask-values", "0,255"]),
        ("gray", ["--mask-values", "0,255"]),
        ("from_one", ["--mask-values", "1,2,3"]),
        ("colors", ["--palette", "class 0=#000000; class 1=#008000; class 2=#800000"]),
    ],
)
def test_masks_that_need_a_setting(
    kind: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "f", kind)
    found = checked(root, capsys, status=1)
    assert problems(found)[0].startswith("values: ")
    assert shlex.join(options) in problems(found)[0]
    assert shlex.split(found["commands"][-1]) == ["brpg", "train", "folder/small", "--root", str(root), *options]
    again = checked(root, capsys, *options, status=0)
    assert again["commands"] == found["commands"]
    assert again["classes"] == found["classes"]


@pytest.mark.parametrize(
    ("kind", "options", "text", "command"),
    [
        ("binary", ["--num-classes", "2"], "where 255 is one of them", "--mask-values 0,255"),
        ("binary", ["--num-classes", "3"], "3 classes were said", "--mask-values 0,255"),
        ("binary", ["--mask-values", "0=0,7=1"], "labeled images show class 0", "--mask-values 0=0,7=1"),
        ("from_one", ["--mask-values", "1,2"], "found 3 in", "--mask-values 1,2"),
        ("from_one", ["--num-classes", "3"], "look like the 3 classes", "--mask-values 1,2,3"),
        ("indices", ["--num-classes", "2"], "with 0 as a class of its own", "--mask-values 0=ignore,1=0,2=1"),
        ("from_one", ["--num-classes", "2"], "2 classes were said", "--mask-values 1,2,3"),
        ("colors", ["--num-classes", "7"], "7 classes were said", "--palette"),
        ("colors", ["--mask-values", "0,255"], "16 of 16 masks hold colors", "--palette"),
        ("colors", ["--palette", "a=#000000; b=#800000"], "found #008000 in", "--palette 'a=#000000; b=#800000'"),
    ],
)
def test_a_setting_that_does_not_fit(
    kind: str, options: list[str], text: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = checked(folder(tmp_path / "f", kind), capsys, *options, status=1)
    assert text in " ".join(problems(found))
    assert command in found["commands"][-1]


def test_shades_between_two_values_are_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f", "binary", images=6)
    for index in range(6):
        noisy = classes_of(index, 2) * 255
        noisy[0, :12] = range(20, 32)
        write_mask(root, f"i{index:02}", noisy)
    found = checked(root, capsys, status=1)
    assert "--mask-values 0=0,255=1,other=ignore" in found["commands"][-1]
    assert checked(root, capsys, "--mask-values", "0=0,255=1,other=ignore", status=0)["pairs"] == 6


def test_photographs_are_no_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f", images=4)
    for index in range(4):
        write_mask(root, f"i{index:02}", np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3)))
    found = checked(root, capsys, status=1)
    assert "4 of 4 masks hold colors" in problems(found)[0]
    assert "too many for classes" in problems(found)[0]
    assert found["commands"] == []


def test_files_that_are_damaged_missing_or_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f")
    image, mask = damage(root / "images/i01.png"), damage(root / "labels/i02.png")
    (root / "images/i03.png").write_bytes(b"")
    (root / "labels/i04.png").unlink()
    (root / "images/i05.png").unlink()
    write_mask(root, "i06", np.zeros((SIDE, SIDE + 1)))
    Image.new("RGB", (SIDE, SIDE)).save(root / "images/i07.jpg")
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)).save(root / "images/i08.png")
    found = checked(root, capsys, status=1)
    said = problems(found)
    assert [text.split(":")[0] for text in said] == ["unreadable", "names", "size", "mode"]
    assert f"{image}: not a readable image (" in said[0]
    assert f"{mask}: not a readable image (" in said[0]
    assert "i03.png: not a readable image (no image of a known format)" in said[0]
    assert "i07.jpg" in said[1]
    assert f"i06.png: {SIDE + 1}x{SIDE}, its image {SIDE}x{SIDE}" in said[2]
    assert "i08.png: mode I;16" in said[3]
    assert any("without an image" in text and "i05.png" in text for text in found["notices"])
    assert any("without a mask" in text and "i04.png" in text for text in found["notices"])


def test_images_that_a_camera_has_turned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f", images=6)
    for name, width in (("i00", SIDE), ("i01", SIDE + 8)):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (width, SIDE)).save(root / f"images/{name}.png", exif=exif)
    write_mask(root, "i01", np.zeros((SIDE + 8, SIDE)))
    found = checked(root, capsys, status=1)
    assert "the image is turned by its EXIF orientation" in problems(found)[0]
    assert any("EXIF orientation: 2" in text and "i00.png" in text for text in found["notices"])


def test_unusable_files_in_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f")
    write_list(root, "labeled", "i00", "i01", "i02")
    damage(root / "images/i01.png")
    said = problems(checked(root, capsys, status=1))
    assert "1 of 3 entries of labeled.txt cannot be used: take them out i01: not usable" in said[1]


def test_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f")
    (root / "labels/i03.png").unlink()
    write_list(root, "labeled", "i00", "i01", "i02.png", "i03", "nothing", "i00")
    write_list(root, "unlabeled", "i04", "i05", "i00")
    write_list(root, "val", "i01", "i06", "i07")
    found = checked(root, capsys, status=1)
    said = problems(found)
    assert found["lists"] == {"labeled": 6, "unlabeled": 3, "val": 3}
    assert "lists: 2 of 6 entries of labeled.txt cannot be used: take them out" in said[0]
    assert "nothing: no such image" in said[0]
    assert "i03: no mask" in said[0]
    assert "lists: 1 images are in labeled.txt and in val.txt" in said[1]
    assert len(said) == 2
    assert any("twice: i00" in text for text in found["notices"])
    assert any("in labeled.txt and in unlabeled.txt: i00" in text for text in found["notices"])


def test_test_images_of_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f")
    write_list(root, "val", "i00", "i01")
    for name in ("i00", "i01"):
        write_mask(root, name, np.zeros((SIDE, SIDE)))
    assert "classes: " in problems(checked(root, capsys, status=1))[0]


def test_names_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f")
    (root / "classes.txt").write_text("grass\nball\ncube\npole\n")
    found = checked(root, capsys, status=0)
    assert [entry["name"] for entry in found["classes"]] == ["grass", "ball", "cube", "pole"]
    assert found["commands"] == [f"brpg train folder/small --root {root}"]
    assert any(text.startswith("in no labeled image: pole") or ", pole, which" in text for text in found["notices"])


@pytest.mark.parametrize("tree", [voc_tree, cityscapes_tree, coco_tree])
def test_published_layouts(tree: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, split = tree(tmp_path), str(tmp_path / "split")
    found = checked(root, capsys, "--split", split, status=0)
    assert found["layout"] == {"VOC2012": "voc", "cityscapes": "cityscapes", "coco": "coco"}[root.name]
    assert found["pairs"] == found["images"] == found["masks"] > 2
    assert found["training"]["test"] == 1
    assert found["lists"]["labeled"] == 1
    assert f"brpg train {found['training']['preset']} --root {root} --set split={split}" == found["commands"][0]


def test_a_published_layout_with_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = voc_tree(tmp_path)
    write_image(root / "SegmentationClassAug/2007_1.png", labels(3, 220))
    write_lines(tmp_path / "split/labeled.txt", "2007_0", "2007_3", "2007_9")
    found = checked(root, capsys, "--data", "voc_blended", "--split", str(tmp_path / "split"), status=1)
    said = problems(found)
    assert "found 220 in 72 pixels" in said[0]
    assert "the one with class indices" in said[0]
    assert "2007_9: no such image" in said[1]
    assert "labeled.txt and in val.txt" in said[2]


def test_folders_under_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f")
    (root / "labels").rename(root / "masks")
    found = checked(root, capsys, status=1)
    assert "expected images/NAME.jpg" in problems(found)[0]
    assert found["commands"] == [f"mv {root}/masks {root}/labels", f"brpg check-data {root}"]
    assert checked(tmp_path, capsys, status=1)["commands"] == []


def test_masks_under_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f", images=12)
    for path in list((root / "labels").iterdir()):
        path.rename(path.with_name(f"gt {path.stem}_mask.png"))
    found = checked(root, capsys, status=1)
    assert "names: masks are named gt IMAGE_mask.png" in problems(found)[0]
    subprocess.run(["sh", "-c", found["commands"][0]], check=True)
    assert checked(root, capsys, status=0)["pairs"] == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["/nowhere"], "/nowhere: no such directory"),
        (["ROOT", "--data", "voc"], "--data: expected the layout of voc, found folder"),
        (["ROOT", "--mask-values", "0"], "mask_values: expected a value for each class"),
        (["ROOT", "--palette", "nothing.txt"], "palette: cannot read nothing.txt"),
        (["ROOT", "--num-classes", "1"], "--num-classes: expected at least 2, found 1"),
        (["ROOT", "--workers", "0"], "--workers: expected at least 1, found 0"),
        (["ROOT", "--picture", "/nowhere/a.png"], "--picture: no such directory: /nowhere"),
    ],
)
def test_wrong_usage(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f", images=2)
    assert check_data.main([str(root) if option == "ROOT" else option for option in options]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("brpg check-data: ")
    assert message in said.splitlines()[-1]


def test_what_a_reader_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f", "binary")
    damage(root / "images/i01.png")
    picture = tmp_path / "samples.png"
    assert check_data.main([str(root), "--picture", str(picture)]) == 1
    out = capsys.readouterr()
    said = " ".join(out.out.split())
    for part in ("layout folder, 16 images, 16 masks, 15 pairs", "Problem: 1 file cannot be read", "i01.png: not a",
                 "--mask-values 0,255", "crops of 33 pixels, 1000 steps in 20 epochs", "Problems: 2"):  # fmt: skip
        assert part in said
    assert "reading" in out.err, "progress"
    with Image.open(picture) as drawn:
        drawn.load()
        assert min(drawn.size) > 300
        assert len(np.unique(np.array(drawn.convert("RGB")).reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("kind", ["binary", "colors"])
def test_what_it_says_to_type_trains(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a folder that nobody prepared to a result."""
    root = folder(tmp_path / "my images", kind)
    damage(root / "images/i01.png")
    found = checked(root, capsys, status=1)
    *repairs, training = found["commands"]
    for command in repairs:
        subprocess.run(["sh", "-c", command], check=True)
    assert checked(root, capsys, *shlex.split(training)[-2:], status=0)["commands"] == [training]
    brpg, *arguments = shlex.split(training)
    assert brpg == "brpg"
    out = tmp_path / "out"
    quick = ["epochs=2", "least_steps=8", "supervised_epochs=0.5", "warmup=0.5", "collect=0.5", "recluster_every=null"]
    small = ["network=compact", "pretrained=false", "width=8", "batch_size=2", "feature_dim=8", "lr=0.01"]
    sets = [f"--set={change}" for change in (*quick, *small)]
    assert cli.main([*arguments, *sets, "--device", "cpu", "--workers", "0", "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    final, recipe = result["validations"][-1], result["recipe"]
    assert len([value for value in final["iou"].values() if value is not None]) >= 2, "no score of a single class"
    assert list(final["iou"]) == [entry["name"] for entry in found["classes"]]
    assert recipe["num_classes"] == len(final["iou"])
    assert bool(recipe["palette"]) == (kind == "colors")
    assert bool(recipe["mask_values"]) == (kind == "binary")
    assert recipe["size"] == found["training"]["crop"]


@given(
    values=st.sets(st.sampled_from([0, 1, 2, 3, 4, 7, 127, 128, 254, 255]), min_size=1, max_size=5),
    count=st.none() | st.integers(2, 5),
    colored=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_it_and_a_training_agree(values: set[int], count: int | None, colored: bool, seed: int) -> None:
    """Without problems a training starts; if only values are unclear, it starts with what is said to type."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for index in range(8):
            rng = np.random.default_rng([seed, index])
            mask = rng.choice(sorted(values), (17, 17)).astype(np.uint8)
            write_image(root / f"images/{index}.png", rng.integers(0, 256, (17, 17, 3), dtype=np.uint8))
            write_image(root / f"labels/{index}.png", np.stack([mask, mask // 2, mask], 2) if colored else mask)
        found = examined(root, Given(num_classes=count, seed=seed))
        kinds = {problem.kind for problem in found.problems}
        start = ["folder/small", "--root", str(root), "--set", f"seed={seed}"]
        if not kinds or (kinds == {"values"} and found.suggestion is not None):
            brpg, command, *typed = shlex.split(found.commands[-1])
            assert [brpg, command] == ["brpg", "train"]
            data = train.recipe_of(train.parser().parse_args(typed)).settled().load_data()
            assert data.masks is not None
            assert len(data.masks.labeled.shown(len(data.class_names))) >= 2
        elif count is not None:
            with pytest.raises(ValueError, match=r"masks|labels"):
                train.recipe_of(train.parser().parse_args([*start, "--num-classes", str(count)])).settled().load_data()
