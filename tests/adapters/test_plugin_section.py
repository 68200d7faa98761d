"""The section of a script's settings."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch
from builders import CLASSES, DIM
from plugins import EPOCHS, ITERATIONS, plugin

from brpg_lib import BRPGConfig, Schedule

CONFIG: dict[str, Any] = {
    "num_prototypes": [3, 1],
    "confidence_threshold": 0.9,
    "confidence_floor": 0.4,
    "class_adaptive": [0.2, 0.9],
    "adaptive_momentum": 0.5,
    "fixed_threshold_classes": [0, 2],
    "samples_per_image": 17,
    "class_balance": 0.5,
    "queue_size": 123,
    "separate_confidence": False,
    "rare_class_fallback": True,
    "split_fraction": 0.5,
    "split_increment": 2,
    "dispersion": "l2",
    "centroid": "confidence",
    "grid_size": 7,
    "unlabeled_samples_per_image": 11,
    "temperature": 0.5,
    "momentum": 0.5,
    "misclassified_weight": 2.5,
    "point_balance": 0.5,
    "pseudo_label_share": 0.5,
    "restarts": 3,
    "max_iterations": 7,
    "backend": "torch",
    "labeled_weight": 0.5,
    "unlabeled_weight": 0.75,
    "loss_weight": 0.25,
    "align_corners": False,
    "ignore_index": 99,
}
EPOCH_COUNTS = {"warmup": 2.5, "collect": 3, "total": 40, "ramp_start": 7, "recluster_every": 1.5, "max_collect": 4}
SCHEDULE: dict[str, Any] = EPOCH_COUNTS | {
    "pseudo_threshold_range": [0.1, 0.2],
    "extrapolate_threshold": True,
    "min_rows": 5,
}
OWN: dict[str, Any] = {
    "enabled": True,
    "feature_dim": 9,
    "seed": 5,
    "queue_dtype": "bfloat16",
    "queue_device": "cpu",
}


def test_all_keys_are_tested() -> None:
    assert CONFIG.keys() == {field.name for field in dataclasses.fields(BRPGConfig)}
    assert SCHEDULE.keys() == inspect.signature(Schedule.from_epochs).parameters.keys() - {"iters_per_epoch"}


def as_given(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("key", CONFIG)
def test_hyper_parameters(key: str) -> None:
    default = plugin().head.config
    config = plugin({key: CONFIG[key]}).head.config
    assert getattr(default, key) != as_given(CONFIG[key])
    assert config == dataclasses.replace(default, **{key: CONFIG[key]})


@pytest.mark.parametrize("key", SCHEDULE)
def test_lengths_count_epochs(key: str) -> None:
    default = plugin().head.schedule
    schedule = plugin({key: SCHEDULE[key]}).head.schedule
    expected = round(ITERATIONS * SCHEDULE[key]) if key in EPOCH_COUNTS else as_given(SCHEDULE[key])
    assert getattr(default, key) != expected
    ramp = {"ramp_start": None} if key == "total" else {}  # a share of the total
    assert schedule == dataclasses.replace(default, **{**ramp, key: expected})


def test_all_keys_at_once() -> None:
    brpg = plugin(CONFIG | SCHEDULE | OWN | {"separate_confidence": True})  # the fallback needs the groups
    assert brpg.head.feature_dim == OWN["feature_dim"]
    assert brpg.head.seed == OWN["seed"]
    assert brpg.head.queue.dtype == torch.bfloat16
    assert brpg.enabled


@pytest.mark.parametrize("section", [None, {}, {"enabled": True}])
@pytest.mark.parametrize(
    ("dataset", "config", "epochs"),
    [
        ("pascal", BRPGConfig.pascal(), 1),
        ("pascal_semi", BRPGConfig.pascal(), 1),
        ("cityscapes", BRPGConfig.cityscapes(), 3),
        ("cityscapes_semi", BRPGConfig.cityscapes(), 3),
        ("coco", BRPGConfig.coco(), 1),
        ("another", BRPGConfig.pascal(), 1),
    ],
)
def test_presets(section: Any, dataset: str, config: BRPGConfig, epochs: int) -> None:
    head = plugin(section, dataset=dataset).head
    lengths = {"warmup": epochs, "collect": epochs, "total": EPOCHS}
    assert head.config == config
    assert head.schedule == Schedule.from_epochs(**lengths, iters_per_epoch=ITERATIONS)
    assert (head.num_classes, head.feature_dim, head.seed) == (CLASSES, DIM, 0)
    assert head.queue.dtype == torch.float32


def test_the_section_may_name_another_preset() -> None:
    head = plugin({"preset": "small_data", "loss_weight": 0.2}, dataset="cityscapes").head
    assert head.config == BRPGConfig.small_data(loss_weight=0.2)
    assert head.schedule == Schedule.small_data(EPOCHS * ITERATIONS), "whose lengths are shares of the training"
    once = plugin({"preset": "small_data", "recluster_every": None, "collect": 1}).head
    assert once.schedule == Schedule.small_data(EPOCHS * ITERATIONS, recluster_every=None, collect=ITERATIONS)
    assert plugin({"preset": "coco"}).head.config == BRPGConfig.coco()


def test_the_section_is_stronger_than_preset_and_script() -> None:
    section = {"rare_class_fallback": False, "ignore_index": 200, "feature_dim": 8, "total": 30}
    head = plugin(section, dataset="coco", ignore_index=254).head
    assert not head.config.rare_class_fallback
    assert (head.config.ignore_index, head.feature_dim, head.schedule.total) == (200, 8, 30 * ITERATIONS)
    assert plugin(dataset="coco", ignore_index=254).head.config.ignore_index == 254


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    ("key", "hint"), [("queue_sise", "queue_size"), ("warm_up", "warmup"), ("qqq", None), (7, None), ("Seed", "seed")]
)
def test_unknown_keys_are_refused(key: Any, hint: str | None, enabled: bool) -> None:
    with pytest.raises(ValueError, match=rf"^brpg\.{key}: .*expected one of ") as refusal:
        plugin({"enabled": enabled, key: 1})
    message = str(refusal.value)
    assert "queue_size, " in message
    assert (f": did you mean {hint}? expected one of" in message) == (hint is not None)


NUMBERS = sorted(
    key
    for key, value in (CONFIG | SCHEDULE | OWN).items()
    if isinstance(value, int | float) and not isinstance(value, bool)
)
WRONG: list[tuple[str, Any]] = [
    *((key, value) for key in NUMBERS for value in ("1", True, [1], {"a": 1}, float("nan"))),
    *((key, value) for key in ("num_prototypes", "pseudo_threshold_range") for value in (1, "12", [1], None, ["a", 1])),
    *(("class_adaptive", value) for value in (0.5, [0.5], ["a", 0.9], [0.5, "b"], "ab")),
    *(("fixed_threshold_classes", value) for value in (1, "1", ["a"], [-1], None)),
    *((key, value) for key in ("separate_confidence", "align_corners", "enabled") for value in (0, "no", None, [True])),
    *((key, value) for key in ("dispersion", "centroid") for value in ("L1", None, 1, ["mean"])),
    *(("preset", value) for value in ("voc", "to_dict", None, 1, ["coco"])),
    *(("queue_dtype", value) for value in ("float", "float64", None, 32, ["float32"], {})),
    *(("queue_device", value) for value in ("gpu", 0, "cuda:1", ["cpu"])),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_values_are_named(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^brpg\.{key}(\[\d\])?: expected .+, found "):
        plugin({key: value})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"min_rows": 10**6}, r"brpg\.min_rows: expected at most the \d+ rows of a queue, found 1000000"),
        ({"fixed_threshold_classes": [99]}, r"brpg\.fixed_threshold_classes: .*, found 99"),
        ({"warmup": EPOCHS}, rf"brpg\.total: .*\(in iterations, {ITERATIONS} per epoch\)"),
    ],
)
def test_what_does_not_fit_is_named_by_its_key(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        plugin(section)


@pytest.mark.parametrize("section", [[], "off", False, 1, [("enabled", False)]])
def test_a_section_is_a_mapping(section: Any) -> None:
    with pytest.raises(ValueError, match=r"^brpg: expected a section"):
        plugin(section)
