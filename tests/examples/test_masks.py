"""Label images of a folder: what is refused before a training, and what values and colors can be said to mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from folders import COLORS, SIDE, classes_of, folder, write_list, write_mask
from PIL import Image

from brpg_lib.examples import demo, train
from brpg_lib.examples.training.data.encoding import Encoding, mask_values, palette, palette_file
from brpg_lib.examples.training.data.folder import crop_for
from brpg_lib.examples.training.data.masks import counts
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.examples.training.recipe_files import read_recipe

PALETTE = "back=#000000; red=128,0,0; green=#008000"


def told(capsys: pytest.CaptureFixture[str], root: Path, *options: str, status: int = 2) -> str:
    """The one line that a training ends with."""
    command = ["folder/small", "--root", str(root), "--device", "cpu", "--workers", "0", "--out", str(root / "out")]
    assert train.main([*command, *options]) == status
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1, said
    assert not (root / "out").exists(), "nothing is written"
    return said


def labels_of(root: Path, **changes: object) -> list[np.ndarray]:
    recipe = Recipe(data="folder", root=str(root), size=None, **changes).settled()  # type: ignore[arg-type]
    data = recipe.load_data()
    return [data.test[i][1].numpy() for i in range(len(data.test))]


# --- What is refused --------------------------------------------------------------------------------------------------


def test_masks_of_0_and_255_are_never_trained_on_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would end in an mIoU of 100 with one class, everything else being ignored."""
    said = told(capsys, folder(tmp_path / "f", "binary"), "--num-classes", "2")
    assert "--mask-values 0,255" in said
    assert "show class 0 (class 0) and" in said


def test_a_demo_refuses_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--data", "folder", "--root", str(folder(tmp_path / "f", "binary")), "--num-classes", "2"]
    assert demo.main([*command, "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "--mask-values 0,255" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "options", "parts"),
    [
        ("from_one", ["--num-classes", "3"], ("expected labels 0..2", "found 3 in", "--mask-values 1,2,3")),
        ("indices", ["--num-classes", "2"], ("expected labels 0..1", "found 2 in", "0=ignore,1=0,2=1", "3")),
        ("colors", ["--num-classes", "3"], ("mode RGB", "of 3 masks", "brpg check-data", "what to type")),
        ("colors", ["--palette", "a=#000000; b=#800000"], ("found #008000 in", "ignore=other")),
        ("colors", ["--mask-values", "0,255"], ("mode RGB", "brpg check-data")),
        ("binary", ["--mask-values", "0=0,7=1"], ("show class 0", "--mask-values 0,255")),
        ("from_one", ["--mask-values", "1,2"], ("values that mask_values names, found 3", "other=ignore")),
        ("indices", [], ("folder needs num_classes", "brpg check-data")),
        ("indices", ["--num-classes", "3", "--mask-values", "0,255"], ("2 by mask_values and 3 by num_classes",)),
        ("indices", ["--mask-values", "0=0,255"], ("mask_values", "found '255'")),
        ("indices", ["--palette", "nothing.txt"], ("palette: expected a file", "found 'nothing.txt'")),
        ("indices", ["--num-classes", "3", "--set", "framework=u2pl", "--set", "lrr=1"], ("lrr: no such field",)),
    ],
)
def test_what_cannot_be_right_is_told_in_a_line(
    kind: str, options: list[str], parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(capsys, folder(tmp_path / "f", kind), *options)
    for part in parts:
        assert part in said


def test_test_images_of_one_class_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f")
    write_list(root, "val", "i00", "i01")
    for name in ("i00", "i01"):
        write_mask(root, name, np.zeros((SIDE, SIDE)))
    assert "2 test images show class 0 (class 0) only; no score" in told(capsys, root, "--num-classes", "3")


def test_masks_of_a_published_layout_are_counted_too(tmp_path: Path) -> None:
    from trees import labels, voc_tree, write_image

    root = voc_tree(tmp_path)
    recipe = Recipe(data="voc", root=str(root), split=str(tmp_path / "split"))
    masks = recipe.load_data().masks
    assert masks is not None
    assert masks.labeled.shown(21) == [0, 15, 20]
    assert "in no labeled image: aeroplane" in masks.notices[0]
    write_image(root / "SegmentationClass/2007_0.png", labels(0))
    with pytest.raises(ValueError, match=r"labeled images show class 0 \(background\) and 96% ignored pixels only"):
        recipe.load_data()


def test_classes_that_no_labeled_image_shows_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "f")
    (root / "classes.txt").write_text("grass\nball\ncube\npole\n")
    write_list(root, "labeled", "i00", "i01")
    write_list(root, "val", "i02", "i03")
    command = ["folder/small", "--root", str(root), "--try", "--device", "cpu", "--workers", "0"]
    small = ["--set", "network=compact", "--set", "pretrained=false", "--set", "width=8"]
    assert train.main([*command, *small]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "in no labeled image: pole, which cannot be learned" in said
    assert "Classes of the masks: pixels, share, images (2 labeled, 2 test)" in said
    assert "crops of 33 pixels" in said


# --- What values and colors mean --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("binary", {"mask_values": "0,255"}),
        ("gray", {"mask_values": [0, 255]}),
        ("from_one", {"mask_values": {1: 0, 2: 1, 3: 2}}),
        ("colors", {"palette": PALETTE}),
    ],
)
def test_values_and_colors_become_classes(kind: str, setting: dict[str, object], tmp_path: Path) -> None:
    root = folder(tmp_path / "f", kind)
    write_list(root, "val", "i03", "i04")
    expected = [classes_of(index, 2 if kind in ("binary", "gray") else 3) for index in (3, 4)]
    assert all(map(np.array_equal, labels_of(root, **setting), expected))


def test_ignored_and_other_values(tmp_path: Path) -> None:
    root = folder(tmp_path / "f", "from_one")
    write_list(root, "val", "i03", "i04")
    first, _ = labels_of(root, mask_values="0=ignore,1=0,2=1,other=ignore")
    assert sorted(np.unique(first).tolist()) == [0, 1] or 255 in first
    assert np.array_equal(np.where(classes_of(3, 3) == 2, 255, classes_of(3, 3)), first)
    root = folder(tmp_path / "g", "colors")
    write_list(root, "val", "i02", "i03")
    first, second = labels_of(root, palette="back=#000000; red=#800000; ignore=other")
    assert set(np.unique(first)) == {0, 1}
    assert set(np.unique(second)) == {0, 255}


def test_a_palette_image_is_read_by_its_colors_if_a_palette_is_given(tmp_path: Path) -> None:
    root = folder(tmp_path / "f", "colors")
    write_list(root, "val", "i03", "i04")
    for index in (3, 4):
        image = Image.fromarray((2 - classes_of(index, 3)).astype(np.uint8), "P")
        image.putpalette(COLORS[::-1].flatten().tolist())
        image.save(root / f"labels/i{index:02}.png")
    found = labels_of(root, palette=PALETTE)
    assert all(map(np.array_equal, found, [classes_of(3, 3), classes_of(4, 3)]))


def test_files_of_palettes(tmp_path: Path) -> None:
    texts = {
        "names.txt": "# of mine\nback=#000000\n\nred=128,0,0\nignore=0,128,0\n",
        "camvid.txt": "0 0 0\tback\n128 0 0\tred\n0 128 0 ignore\n",
        "cvat.txt": "# label:color_rgb:parts:actions\nback:0,0,0::\nred:128,0,0::\nignore:0,128,0::\n",
        "plain.txt": "#000000 back\n#800000, red\n#008000;ignore\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert palette_file(tmp_path / name) == ["back=#000000", "red=#800000", "ignore=#008000"], name
    (tmp_path / "wrong.txt").write_text("back=#000000\nred\n")
    with pytest.raises(ValueError, match=r"wrong\.txt: palette: expected NAME=#rrggbb.*found 'red'"):
        palette_file(tmp_path / "wrong.txt")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a=#000000", "expected 2 to 254 classes, found 1"),
        ("a=#000000; b=0,0,0", "#000000 is named twice"),
        ("a=#000000; b=0,0,256", "from 0 to 255, found '0,0,256'"),
        ("a=#000000; b=blue", "found 'b=blue'"),
        (7, "found 7"),
    ],
)
def test_wrong_palettes(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"palette: .*{message}"):
        palette(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0,x", "found 'x=1'"),
        ("0,0", "value 0 is named twice"),
        ("0=0,255=2", "none for class 1"),
        ("0=ignore,1=ignore", "none for class 0, 1"),
        ("0=0,70000=1", "found '70000=1'"),
        ("0=0,1=255", "found '1=255'"),
        ("", "none for class 0, 1"),
        (3, "none for class 0, 1"),
    ],
)
def test_wrong_mask_values(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"mask_values: .*{message}"):
        mask_values(given)


def test_an_encoding_survives_its_plain_form() -> None:
    for given in ("0,255", {0: 0, 128: "ignore", 255: 1}, ["0=1", "5=0", "other=ignore"]):
        plain = mask_values(given)
        assert mask_values(plain) == plain
        assert json.loads(json.dumps(plain)) == plain
    plain = palette(PALETTE + "; red=1,2,3; ignore=other")
    assert palette(plain) == plain
    encoding = Encoding.of_palette(plain)
    assert encoding.names == ("back", "red", "green")
    assert encoding.class_colors == ((0, 0, 0), (128, 0, 0), (0, 128, 0))


def test_counts_equal_numpys() -> None:
    values = np.random.default_rng(0).integers(0, 4, (30, 40)) ** 9
    found, number = np.unique(values, return_counts=True)
    assert counts(values) == dict(zip(found.tolist(), number.tolist(), strict=True))
    assert counts(np.zeros((0, 4), np.int64)) == {}


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_the_preset_fits_the_images(tmp_path: Path) -> None:
    recipe = read_recipe("folder/small", {"root": str(folder(tmp_path / "f")), "num_classes": 3}).settled()
    assert [recipe.crop, recipe.short_side, recipe.network, recipe.num_classes] == [33, None, "efficientnet_lite0", 3]
    assert recipe.settled() == recipe
    own = read_recipe("folder/small", {"root": recipe.root, "num_classes": 3, "size": 65, "short_side": 91}).settled()
    assert [own.size, own.short_side] == [65, 91]
    assert Recipe(**yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("side", [1, 20, 33, 34, 64, 72, 128, 360, 361, 1080, 4000])
def test_crops_fit(side: int) -> None:
    crop, reduced = crop_for(side)
    assert crop % 16 == 1
    assert 33 <= crop <= 257
    assert crop <= max(33, side)
    assert (reduced is None) == (side <= 360 or side < 1.4 * 257)


@pytest.mark.parametrize(("unlabeled", "epochs", "steps"), [(5, 20, 1000), (5000, 20, 12500), (5, 3, 1002)])
def test_small_folders_are_seen_repeatedly(unlabeled: int, epochs: int, steps: int) -> None:
    from brpg_lib.examples.training.loop import plan_of

    plan = plan_of(read_recipe("folder/small", {"epochs": epochs, "warmup": 0.6, "collect": 0.15}), unlabeled, False)
    assert [plan.epochs, plan.steps] == [epochs, steps]
    assert 0 < plan.schedule.warmup + plan.schedule.collect < plan.steps / 2


def test_names_of_classes(tmp_path: Path) -> None:
    root = folder(tmp_path / "f")
    (root / "classes.txt").write_text("grass\nball\ncube\n")
    recipe = read_recipe("folder/small", {"root": str(root)}).settled()
    assert recipe.class_names == ["grass", "ball", "cube"]
    assert recipe.load_data().class_names == ("grass", "ball", "cube")
    with pytest.raises(ValueError, match=r"classes\.txt: expected 4 names, found 3"):
        read_recipe("folder/small", {"root": str(root), "num_classes": 4}).settled()
    (root / "classes.txt").write_text("grass\nball\nball\n")
    with pytest.raises(ValueError, match="ball is named twice"):
        read_recipe("folder/small", {"root": str(root)}).settled()


def test_what_describes_masks_is_for_folders() -> None:
    with pytest.raises(ValueError, match="size: expected a number for voc"):
        Recipe(data="voc", size=None)
    with pytest.raises(ValueError, match="known for digits; expected none"):
        Recipe(data="digits", size=33, mask_values="0,255").load_data()
    with pytest.raises(ValueError, match="palette: expected none beside mask_values"):
        Recipe(data="folder", mask_values="0,255", palette=PALETTE)


def test_a_recipe_names_a_file_of_colors_beside_it(tmp_path: Path) -> None:
    (tmp_path / "colors.txt").write_text(PALETTE.replace("; ", "\n"))
    (tmp_path / "mine.yaml").write_text("data: folder\npalette: colors.txt\nlr: 0.5\n")
    recipe = read_recipe(str(tmp_path / "mine.yaml"))
    assert recipe.palette == palette(PALETTE)
    assert recipe.learning_rate == 0.5
    assert read_recipe(str(tmp_path / "mine.yaml"), {"lr": 0.25}).learning_rate == 0.25
    (tmp_path / "both.yaml").write_text("data: folder\nlr: 1\nlearning_rate: 1\n")
    with pytest.raises(ValueError, match="learning_rate: given twice"):
        read_recipe(str(tmp_path / "both.yaml"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("temperature", "head.temperature"), ("crop_size", "size"), ("learning_rte", "learning_rate"),
     ("backbone", "network"), ("iterations", "epoch_steps"), ("mask_value", "mask_values")],
)  # fmt: skip
def test_near_misses_are_answered(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: no such field; did you mean {meant}"):
        read_recipe("folder/small", {name: 1})
