"""Recipes: what comes with the library, what a file may say, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.examples.training.recipe_files import presets, read_recipe

PUBLISHED = {
    "voc": {"classic_92", "classic_183", "classic_366", "classic_732", "classic_1464",
            "blended_662", "blended_1323", "blended_2646", "blended_5291"},
    "cityscapes": {"labeled_186", "labeled_372", "labeled_744", "labeled_1488"},
    "coco": {"one_in_128", "one_in_64", "one_in_32", "one_in_16"},
}  # fmt: skip


def test_every_published_partition_has_a_preset() -> None:
    assert set(presets()) >= {f"{data}/{name}" for data, names in PUBLISHED.items() for name in names}


def test_official_hyper_parameters() -> None:
    voc, streets, coco = (read_recipe(name) for name in ("voc/classic_92", "cityscapes/labeled_186", "coco/one_in_128"))
    assert [voc.size, voc.batch_size, voc.epochs, voc.learning_rate, voc.new_factor] == [513, 16, 80, 0.001, 10]
    assert [streets.size, streets.batch_size, streets.epochs, streets.new_factor] == [769, 8, 200, 1]
    assert streets.evaluation == "sliding"
    assert [coco.network, coco.epochs, coco.brpg.rare_class_fallback] == ["xception65", 30, True]
    phases = streets.schedule(100)
    assert [phases.warmup, phases.collect, phases.total, phases.ramp_start] == [300, 300, 20000, 500]


def test_partitions_of_both_voc_lists() -> None:
    assert read_recipe("voc/classic_1464").data == "voc"
    blended = read_recipe("voc/blended_662")
    assert [blended.data, blended.split] == ["voc_blended", "pascal/662"]


def test_a_file_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("data: digits\nepochs: 7\nhead: {momentum: 0.5, temperature: 0.2}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nepochs: 9\nhead: {momentum: 0.6}\n")
    found = read_recipe(str(tmp_path / "mine.yaml"), {"head.loss_weight": 0.1})
    assert found.epochs == 9
    assert [found.brpg.momentum, found.brpg.temperature, found.brpg.loss_weight] == [0.6, 0.2, 0.1]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("epochs: 3", ("data: missing", "voc")),
        ("data: voc\nepoch: 3", ("epoch: no such field", "did you mean epochs")),
        ("data: voc\nepochs: many", ("epochs: expected int, found 'many'",)),
        ("data: voc\nepochs: 2.5", ("epochs: expected int, found 2.5",)),
        ("data: voc\nlearning_rate: 1e-3", ("learning_rate: expected float", "write 0.001")),
        ("data: voc\npretrained: 1", ("pretrained: expected bool, found 1",)),
        ("data: voc\nnum_classes: x", ("num_classes: expected int or null",)),
        ("data: voc\nnetwork: resnet", ("network: expected one of compact", "found 'resnet'")),
        ("data: voc\nsize: 8", ("size: expected at least 17, found 8",)),
        ("data: voc\nhead: 3", ("head: expected fields of BRPGConfig",)),
        ("data: voc\nhead: {momentun: 1}", ("momentun",)),
        ("data: voc\nhead: {momentum: 2}", ("momentum", "[0.0, 1.0]")),
        ("data: voc\nepochs: 1", ("epochs: expected at least warmup + collect (2), found 1",)),
        ("data: voc\nextends: nothing.yaml", ("cannot read", "nothing.yaml")),
        ("data: voc\nextends: wrong.yaml", ("extends itself",)),
        ("data: [", ("not YAML",)),
        ("- voc", ("expected NAME: VALUE lines",)),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match=r"wrong\.yaml") as caught:
        read_recipe(str(path))
    for part in parts:
        assert part in str(caught.value)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="did you mean voc/classic_92"):
        read_recipe("voc/clasic_92")
    with pytest.raises(ValueError, match="presets: cityscapes/labeled_1488"):
        read_recipe("qqq")


def test_a_recipe_survives_yaml_and_json() -> None:
    recipe = read_recipe("coco/one_in_64")
    assert Recipe(**recipe.to_dict()) == recipe
