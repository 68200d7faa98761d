import re

import numpy as np
import pytest
import torch
from PIL import Image

from brpg_lib.examples.training.data.camvid import load_camvid
from brpg_lib.examples.training.data.folder import load_folder, partition
from brpg_lib.examples.training.data.pairs import Pair, PairDataset


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"images/i{i}.png")
        write_label(tmp_path, f"i{i}", rng.integers(0, 3, (20, 30), dtype=np.uint8))
    return tmp_path


def pair(root, name):
    return Pair(root / f"images/{name}.png", root / f"labels/{name}.png")


def write_label(root, name, values):
    Image.fromarray(values).save(root / f"labels/{name}.png")


def write_lists(root, **lists):
    for name, names in lists.items():
        (root / f"{name}.txt").write_text("\n".join(names) + "\n")


def fails(call, *parts):
    with pytest.raises(ValueError, match=".*".join(re.escape(part) for part in parts)):
        call()


def test_seeded_split_is_stable_disjoint_and_told(root):
    data, again = load_folder(root, 3, seed=1, short_side=24), load_folder(root, 3, seed=1, short_side=24)
    parts = [set(part.names) for part in (data.labeled, data.unlabeled, data.test)]
    assert [len(part) for part in parts] == [2, 6, 2]
    assert len(set.union(*parts)) == 10
    assert data.labeled.names == again.labeled.names
    assert "2 test images drawn by seed 1" in data.description


def test_every_mask_is_a_label_where_some_images_have_none(root):
    """They are unlabeled anyway: masks that nobody reads would be work lost."""
    for i in range(4):
        (root / f"labels/i{i}.png").unlink()
    data = load_folder(root, 3, seed=1, short_side=24)
    assert [len(part.names) for part in (data.labeled, data.unlabeled, data.test)] == [5, 4, 1]
    assert set(data.unlabeled.names) == {f"i{i}" for i in range(4)}
    assert "5 labeled images, all others with a mask" in data.description


def test_masks_that_are_not_used_are_told_of(root):
    data = load_folder(root, 3, seed=1, short_side=24)
    text = "2 labeled images drawn by seed 1; the masks of 6 others are not used (labeled.txt would name them)"
    assert text in data.description


def test_lists_are_followed(root):
    write_lists(root, labeled=["i0", "i1.png"], val=["i2"])
    data = load_folder(root, 3, seed=0, short_side=24)
    assert data.labeled.names == ["i0", "i1"]
    assert data.test.names == ["i2"]
    assert len(data.unlabeled) == 7


def test_ignored_pixels_and_reduction(root):
    values = np.zeros((20, 30), np.uint8)
    values[:, :15] = 255
    write_label(root, "i0", values)
    image, label = PairDataset([pair(root, "i0")], 3, short_side=10)[0]
    assert image.shape == (3, 10, 15)
    assert label.shape == (10, 15)
    assert label.dtype == torch.int64
    assert set(label.unique().tolist()) == {0, 255}


def test_unlabeled_images_need_no_label(root):
    (root / "labels/i3.png").unlink()
    assert PairDataset([pair(root, "i3")._replace(label=None)], 3)[0][1].sum() == 0
    fails(lambda: PairDataset([pair(root, "i3")], 3), "i3.png", "missing")


def test_missing_directory(tmp_path):
    fails(lambda: load_folder(tmp_path, 3, 0), "images", "no such directory")


def test_label_out_of_range(root):
    write_lists(root, labeled=["i0"], val=["i1"])
    write_label(root, "i0", np.full((20, 30), 7, np.uint8))
    fails(lambda: load_folder(root, 3, 0), "i0.png", "expected labels 0..2 or 255 (ignored), found 7")


def test_color_label(root):
    write_lists(root, labeled=["i0"], val=["i1"])
    write_label(root, "i0", np.zeros((20, 30, 3), np.uint8))
    fails(lambda: load_folder(root, 3, 0), "i0.png", "one class index per pixel", "mode RGB")


def test_size_mismatch(root):
    write_lists(root, labeled=["i0"], val=["i1"])
    write_label(root, "i0", np.zeros((20, 31), np.uint8))
    fails(lambda: load_folder(root, 3, 0), "i0.png", "30x20, found 31x20")


def test_listed_image_is_missing(root):
    write_lists(root, labeled=["nothing"])
    fails(lambda: load_folder(root, 3, 0), "no image named nothing")


def test_image_in_train_and_val(root):
    write_lists(root, labeled=["i0"], val=["i0"])
    fails(lambda: load_folder(root, 3, 0), "i0 is listed for training and in val.txt")


def test_camvid_split(root):
    (root / "splits").mkdir()
    write_lists(root / "splits", a_labeled=["i0"], a_unlabeled=["i1", "i2"], val=["i3"])
    data = load_camvid(root, "a", 24)
    assert [len(part) for part in (data.labeled, data.unlabeled, data.test)] == [1, 2, 1]
    assert len(data.class_names) == 11
    fails(lambda: load_camvid(root, "b"), "split: expected one of a, found 'b'")


@pytest.mark.parametrize("lists", [{"labeled": ["i0", "i1"]}, {"unlabeled": ["i2", "i3"]},
                                   {"labeled": ["i4"], "unlabeled": ["i5", "i6"]}])  # fmt: skip
def test_test_images_are_drawn_from_what_no_list_names(root, lists):
    write_lists(root, **lists)
    seen = set()
    for seed in range(200):
        found = partition(root, [f"i{i}" for i in range(10)], [f"i{i}" for i in range(10)], seed)
        assert not {*found.val} & {name for names in lists.values() for name in names}
        assert not {*found.val} & {*found.labeled, *found.unlabeled}
        assert found.labeled == lists.get("labeled", found.labeled)
        assert found.unlabeled == lists.get("unlabeled", found.unlabeled)
        seen |= {*found.val}
    assert len(seen) > 4, "they depend on the seed"
    load_folder(root, 3, seed=0)


def test_lists_that_leave_nothing_to_test_on(root):
    write_lists(root, labeled=[f"i{i}" for i in range(5)], unlabeled=[f"i{i}" for i in range(5, 10)])
    fails(lambda: load_folder(root, 3, 0), "no val.txt, and every image with a label is in another list")


def test_a_damaged_unlabeled_image_is_told_of_before_the_training(root):
    write_lists(root, labeled=["i0"], val=["i1"], unlabeled=["i2", "i3"])
    path = root / "images/i3.png"
    path.write_bytes(path.read_bytes()[:200])
    fails(lambda: load_folder(root, 3, 0), "i3.png: not a readable image")
