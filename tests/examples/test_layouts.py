"""Published datasets, on small trees of the same layout, and what is said about wrong ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trees import SIZE, cityscapes_tree, coco_tree, labels, voc_tree, write_image, write_lines

from brpg_lib.examples.training.data.layouts import CITYSCAPES_IDS, LAYOUTS
from brpg_lib.examples.training.data.pets import load_pets
from brpg_lib.examples.training.recipe import Recipe


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return voc_tree(tmp_path)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    return cityscapes_tree(tmp_path)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return coco_tree(tmp_path)


def counts(data: Any) -> list[int]:
    return [len(part) for part in (data.labeled, data.unlabeled, data.test)]


def fails(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(ValueError, match=".*".join(re.escape(part) for part in parts)):
        call()


@pytest.mark.parametrize("layout", ["voc", "voc_blended"])
def test_voc(voc: Path, layout: str) -> None:
    data = LAYOUTS[layout].load(voc, voc.parent / "split")
    assert counts(data) == [1, 2, 1]
    assert len(data.class_names) == 21
    image, label = data.labeled[0]
    assert image.shape == (3, *SIZE)
    assert label.unique().tolist() == [0, 15, 20, 255]
    assert not data.unlabeled[0][1].any(), "labels of unlabeled images are never read"


def test_voc_lists_with_both_files(voc: Path) -> None:
    """As UniMatch writes them: the label it names may lie in the other directory."""
    write_lines(voc.parent / "split/labeled.txt", "JPEGImages/2007_0.jpg SegmentationClass/2007_0.png")
    data = LAYOUTS["voc_blended"].load(voc, voc.parent / "split/labeled.txt")
    assert data.labeled.pairs[0].label == voc / "SegmentationClass/2007_0.png"
    (voc / "SegmentationClass/2007_0.png").unlink()
    data = LAYOUTS["voc_blended"].load(voc, voc.parent / "split")
    assert data.labeled.pairs[0].label == voc / "SegmentationClassAug/2007_0.png"


def test_cityscapes_label_ids_become_train_ids(cityscapes: Path) -> None:
    split = cityscapes.parent / "split"
    data = LAYOUTS["cityscapes"].load(cityscapes, split, split / "val.txt")
    assert counts(data) == [1, 1, 1]
    for part in (data.labeled, data.test):
        assert part[0][1].unique().tolist() == [0, 13, 18, 255]
    assert len(CITYSCAPES_IDS) == len(data.class_names) == 19


def test_cityscapes_train_ids_are_taken_as_they_are(cityscapes: Path) -> None:
    write_image(cityscapes / "gtFine/train/aachen/aachen_0_gtFine_labelTrainIds.png", labels(7, 11, 18))
    split = cityscapes.parent / "split"
    data = LAYOUTS["cityscapes"].load(cityscapes, split, split / "val.txt")
    assert data.labeled[0][1].unique().tolist() == [7, 11, 18, 255]


def test_cityscapes_needs_a_list_to_test_on(cityscapes: Path) -> None:
    fails(lambda: LAYOUTS["cityscapes"].load(cityscapes, cityscapes.parent / "split"), "val", "name one")


def test_coco(coco: Path) -> None:
    split = coco.parent / "split"
    data = LAYOUTS["coco"].load(coco, split, split / "val.txt")
    assert counts(data) == [1, 1, 1]
    assert len(data.class_names) == 81
    assert data.test[0][1].unique().tolist() == [0, 1, 80, 255]


def test_pets(tmp_path: Path) -> None:
    base = tmp_path / "oxford-iiit-pet"
    names = {"Abyssinian_1": 1, "Bombay_1": 1, "beagle_1": 2, "boxer_1": 2}
    for name in names:
        write_image(base / f"images/{name}.jpg")
        write_image(base / f"annotations/trimaps/{name}.png", labels(1, 2, 3))
    rows = [f"{name} {index + 1} {species} 1" for index, (name, species) in enumerate(names.items())]
    write_lines(base / "annotations/list.txt", "#Image CLASS-ID SPECIES BREED ID", *rows)
    write_lines(base / "annotations/trainval.txt", *rows[:3])
    write_lines(base / "annotations/test.txt", rows[3])
    data = load_pets(tmp_path, seed=0, short_side=181, labeled_share=0.7)
    assert counts(data) == [2, 1, 1]
    assert data.test[0][1].unique().tolist() == [1, 2, 255], "the outline is ignored"
    for index, name in enumerate(data.labeled.names):
        assert data.labeled[index][1].min() == names[name] - 1


def test_large_images_are_reduced(voc: Path) -> None:
    data = LAYOUTS["voc"].load(voc, voc.parent / "split", short_side=6)
    image, label = data.labeled[0]
    assert image.shape == (3, 6, 8)
    assert label.shape == (6, 8)
    assert label.dtype == torch.int64


# --- Wrong ones, and what a user reads --------------------------------------------------------------------------------


def test_the_wrong_directory(voc: Path) -> None:
    split = voc.parent / "split"
    fails(lambda: LAYOUTS["voc"].load(voc / "nowhere", split), "nowhere: no such directory", "root of PASCAL VOC 2012")
    fails(lambda: LAYOUTS["voc"].load(voc.parent, split), "expected the layout of PASCAL VOC 2012, with JPEGImages, "
          "SegmentationClass in it; found no JPEGImages")  # fmt: skip
    fails(lambda: LAYOUTS["cityscapes"].load(voc, split), "layout of Cityscapes, with leftImg8bit, gtFine in it")


def test_a_missing_list(voc: Path) -> None:
    split = voc.parent / "split"
    (split / "unlabeled.txt").unlink()
    fails(lambda: LAYOUTS["voc"].load(voc, split), "unlabeled.txt: no such file", "labeled.txt and unlabeled.txt")
    fails(lambda: LAYOUTS["voc"].load(voc, voc.parent), "labeled.txt: no such file")
    write_lines(split / "unlabeled.txt", "")
    fails(lambda: LAYOUTS["voc"].load(voc, split), "unlabeled.txt: lists no images")
    write_lines(split / "unlabeled.txt", "a b c")
    fails(lambda: LAYOUTS["voc"].load(voc, split), "'a b c': expected an image, or an image and its label")


def test_a_missing_file(voc: Path) -> None:
    split = voc.parent / "split"
    (voc / "SegmentationClass/2007_0.png").unlink()
    fails(lambda: LAYOUTS["voc"].load(voc, split), "2007_0.png: missing; every labeled and test image needs a label")
    (voc / "JPEGImages/2007_2.jpg").unlink()
    fails(lambda: LAYOUTS["voc_blended"].load(voc, split), "2007_2.jpg: no such image")


def test_an_image_in_two_lists(voc: Path) -> None:
    write_lines(voc.parent / "split/unlabeled.txt", "2007_1", "2007_3")
    fails(lambda: LAYOUTS["voc"].load(voc, voc.parent / "split"), "2007_3.jpg is both unlabeled and to test on")


def test_labels_in_colors(voc: Path) -> None:
    """What an image tool makes of VOC's palette images; the loss then looks fine, and every IoU is 0."""
    write_image(voc / "SegmentationClass/2007_0.png")
    fails(lambda: LAYOUTS["voc"].load(voc, voc.parent / "split"), "2007_0.png: expected one class index per pixel",
          "found colors (mode RGB)", "convert them with VOC's color map")  # fmt: skip


def test_labels_outside_the_classes(voc: Path) -> None:
    write_image(voc / "SegmentationClassAug/2007_0.png", labels(3, 220))
    fails(lambda: LAYOUTS["voc_blended"].load(voc, voc.parent / "split"), "expected labels 0..20 or 255 (ignored), "
          "found 220 in 72 pixels", "the one with class indices (grayscale)")  # fmt: skip


def test_labels_of_another_size(voc: Path) -> None:
    write_image(voc / "SegmentationClass/2007_0.png", labels(0, 3)[:, :-1])
    fails(lambda: LAYOUTS["voc"].load(voc, voc.parent / "split"), "expected the size of 2007_0.jpg, 48x36, found 47x36")


def test_a_damaged_image(voc: Path) -> None:
    (voc / "JPEGImages/2007_0.jpg").write_bytes(b"no image")
    fails(lambda: LAYOUTS["voc"].load(voc, voc.parent / "split"), "2007_0.jpg: not a readable image")


def test_pets_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.OxfordIIITPet", fail)
    fails(lambda: load_pets(tmp_path, 0), "could not be downloaded (no route to host)", "unpack images.tar.gz")


@pytest.mark.parametrize("place", ["split", "."])
def test_list_to_test_on_lies_in_the_partition_or_beside_it(coco: Path, place: str) -> None:
    listed = coco.parent / "split/val.txt"
    listed.rename(coco.parent / place / "val.txt")
    recipe = Recipe(data="coco", root=str(coco), split=str(coco.parent / "split"))
    assert counts(recipe.load_data()) == [1, 1, 1]
