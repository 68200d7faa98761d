"""Hyper-parameters: what is refused, what survives a file, and that modules agree on defaults."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brpg_lib import (
    AdaptiveSplitter,
    BRPGConfig,
    ConfidenceSampler,
    FeatureQueue,
    OnlineClusterer,
    ProjectionHead,
    PrototypeBank,
    PrototypeContrastiveLoss,
    PrototypeHead,
    Schedule,
    prototype_contrastive_loss,
)

MISTYPED: dict[str, Callable[[], object]] = {
    "BRPGConfig() got an unexpected keyword argument 'loss_wieght'; did you mean 'loss_weight'?": lambda: (
        BRPGConfig.small_data(loss_wieght=0.3)
    ),
    "Schedule() got an unexpected keyword argument 'colect'; did you mean 'collect'?": lambda: Schedule(
        warmup=1,
        colect=1,  # type: ignore[call-arg]
        total=3,
    ),
    "Schedule.from_epochs() got an unexpected keyword argument 'iters'": lambda: Schedule.from_epochs(
        warmup=1,
        collect=1,
        total=9,
        iters=10,  # type: ignore[call-arg]
    ),
    "PrototypeHead() got an unexpected keyword argument 'feature_dims'; did you mean 'feature_dim'?": lambda: (
        PrototypeHead(2, feature_dims=4)  # type: ignore[call-arg]
    ),
    "ProjectionHead() got an unexpected keyword argument 'out_channels'": lambda: ProjectionHead(
        4,
        out_channels=4,  # type: ignore[call-arg]
    ),
}


@pytest.mark.parametrize("text", MISTYPED)
def test_a_mistyped_keyword_is_answered_with_the_right_one(text: str) -> None:
    with pytest.raises(TypeError, match=re.escape(text)):
        MISTYPED[text]()


MODULES = (ConfidenceSampler, FeatureQueue, AdaptiveSplitter, OnlineClusterer, PrototypeBank)
MODULES += (PrototypeContrastiveLoss, prototype_contrastive_loss)
FIELDS = {field.name: field for field in dataclasses.fields(BRPGConfig)}
POSITIVE = (0, -1, 1.5, "3", None, True, math.nan)
SHARE = (-0.1, 1.1, math.nan, math.inf, "0.5", None, True)
WRONG: dict[str, tuple[Any, ...]] = {
    "num_prototypes": (2, (2,), (2, 2, 2), (0, 2), (2, -1), (2.0, 2), "22", None, (True, 1)),
    "confidence_threshold": (*SHARE, 0.0),
    "confidence_floor": (*SHARE, 0.8, 0.9),
    "class_adaptive": (0.5, (0.5,), (0.9, 0.5), (-0.1, 0.5), (0.5, 1.1), (0.1, 0.2, 0.3), (math.nan, 1.0), "no"),
    "adaptive_momentum": SHARE,
    "fixed_threshold_classes": (0, (-1,), (1.0,), None, "0", ("a",)),
    "samples_per_image": POSITIVE,
    "class_balance": (-1, math.nan, math.inf, "0.5", True),
    "queue_size": POSITIVE,
    "separate_confidence": (1, None, "yes"),
    "rare_class_fallback": (0, None, "no"),
    "split_fraction": SHARE,
    "split_increment": POSITIVE,
    "dispersion": ("cos", None, 1, "L2"),
    "centroid": ("median", None, 1),
    "grid_size": POSITIVE,
    "unlabeled_samples_per_image": POSITIVE,
    "temperature": (0, -1, math.nan, math.inf, "0.1", None, True),
    "momentum": SHARE,
    "misclassified_weight": (-1, math.nan, math.inf, "1", None),
    "point_balance": (-1, 11, math.nan, math.inf, "1", None),
    "pseudo_label_share": (0, -0.1, 1.1, math.nan, math.inf, "1", True),
    "restarts": POSITIVE,
    "max_iterations": POSITIVE,
    "backend": ("cuda", 1, True),
    "labeled_weight": (-1, math.nan, math.inf, "1", None),
    "unlabeled_weight": (-1, math.nan, math.inf, "1", None),
    "loss_weight": (-1, math.nan, math.inf, "1", None),
    "align_corners": (1, None, "True"),
    "ignore_index": (255.0, None, "255", True),
}


def test_every_field_is_listed_here() -> None:
    assert WRONG.keys() == FIELDS.keys()


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in WRONG.items() for v in values])
def test_wrong_values_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{field}(\[\d\])?: expected .+, found "):
        BRPGConfig(**{field: value})


def test_a_wrong_type_is_a_type_error() -> None:
    for wrong in (
        {"momentum": "0.9"},
        {"queue_size": 2.0},
        {"num_prototypes": 2},
        {"dispersion": 1},
        {"align_corners": 1},
    ):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))}: expected"):
            BRPGConfig(**wrong)
    for wrong in ({"momentum": 1.5}, {"queue_size": 0}, {"num_prototypes": (2, 0)}, {"dispersion": "no"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*: expected"):
            BRPGConfig(**wrong)


def test_the_message_shows_what_was_found() -> None:
    with pytest.raises((TypeError, ValueError), match=r"momentum.*found 'fast'"):
        BRPGConfig(momentum="fast")  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError), match=r"num_prototypes\[1\]: expected an integer >= 1, found 0"):
        BRPGConfig(num_prototypes=(2, 0))


def test_fallback_needs_separate_groups() -> None:
    with pytest.raises(ValueError, match="rare_class_fallback"):
        BRPGConfig(rare_class_fallback=True, separate_confidence=False)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BRPGConfig().momentum = 0.5  # type: ignore[misc]
    with pytest.raises(ValueError, match="momentum"):
        dataclasses.replace(BRPGConfig(), momentum=2.0)


def test_defaults_are_the_published_ones() -> None:
    config = BRPGConfig()
    published = {"num_prototypes": (2, 2), "confidence_threshold": 0.8, "samples_per_image": 5000, "queue_size": 30000}
    published |= {"split_fraction": 0.05, "grid_size": 32, "unlabeled_samples_per_image": 1000, "temperature": 0.1}
    published |= {"momentum": 0.99, "dispersion": "cosine", "centroid": "mean", "ignore_index": 255, "loss_weight": 1.0}
    assert {name: getattr(config, name) for name in published} == published


def test_presets() -> None:
    assert BRPGConfig.pascal() == BRPGConfig()
    assert BRPGConfig.cityscapes() == BRPGConfig()
    assert BRPGConfig.coco() == BRPGConfig(rare_class_fallback=True)
    assert BRPGConfig.small_data() == BRPGConfig(pseudo_label_share=0.5, loss_weight=0.3)
    assert BRPGConfig.small_data(loss_weight=1.0) == BRPGConfig(pseudo_label_share=0.5)
    assert BRPGConfig.coco(rare_class_fallback=False, momentum=0.9) == BRPGConfig(momentum=0.9)
    with pytest.raises(TypeError, match="unknown"):
        BRPGConfig.pascal(unknown=1)
    with pytest.raises(ValueError, match="momentum"):
        BRPGConfig.cityscapes(momentum=-1)


@pytest.mark.parametrize(
    ("options", "slots"),
    [({}, 3), ({"split_fraction": 0.0}, 2), ({"num_prototypes": (1, 4)}, 5), ({"split_increment": 3}, 5),
     ({"separate_confidence": False}, 4), ({"separate_confidence": False, "num_prototypes": (3, 4)}, 7)],
)  # fmt: skip
def test_max_prototypes(options: dict[str, Any], slots: int) -> None:
    assert BRPGConfig(**options).max_prototypes == slots


SHARES = st.floats(0, 1)
VALID = st.fixed_dictionaries(
    {},
    optional={
        "num_prototypes": st.tuples(st.integers(1, 9), st.integers(1, 9)),
        "confidence_threshold": st.floats(0.1, 1),
        "class_adaptive": st.none() | st.tuples(st.floats(0, 0.5), st.floats(0.5, 1)),
        "fixed_threshold_classes": st.lists(st.integers(0, 99), max_size=3).map(tuple),
        "class_balance": st.none() | st.floats(0, 2),
        "dispersion": st.sampled_from(["cosine", "l2", "l2_normalized"]),
        "centroid": st.sampled_from(["mean", "confidence"]),
        "split_fraction": SHARES,
        "momentum": SHARES,
        "ignore_index": st.integers(-300, 300),
        "misclassified_weight": st.floats(0, 10),
        "point_balance": st.floats(0, 10),
        "pseudo_label_share": st.none() | st.floats(0, 1, exclude_min=True),
        "align_corners": st.booleans(),
        "separate_confidence": st.booleans(),
    },
)


@given(options=VALID)
def test_json_round_trip(options: dict[str, Any]) -> None:
    config = BRPGConfig(**options)
    fields = json.loads(json.dumps(config.to_dict()))
    assert fields.keys() == FIELDS.keys()
    restored = BRPGConfig.from_dict(fields)
    assert restored == config
    assert hash(restored) == hash(config)  # lists have become tuples again


def test_from_dict_fills_in_defaults_and_refuses_strangers() -> None:
    assert BRPGConfig.from_dict({"momentum": 0.5}) == BRPGConfig(momentum=0.5)
    with pytest.raises(ValueError, match=r"momentun"):
        BRPGConfig.from_dict({"momentun": 0.5})
    with pytest.raises(TypeError, match=r"queue_size"):
        BRPGConfig.from_dict({"queue_size": "many"})


@pytest.mark.parametrize("module", MODULES)
def test_modules_share_names_and_defaults(module: Any) -> None:
    shared = {n: p for n, p in inspect.signature(module).parameters.items() if n in FIELDS}
    assert shared
    for name, parameter in shared.items():
        assert parameter.default == FIELDS[name].default, name
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name


@pytest.mark.parametrize("module", MODULES[:5])
def test_modules_start_with_the_number_of_classes(module: Any) -> None:
    assert next(iter(inspect.signature(module).parameters)) == "num_classes"
    for wrong in (0, -1, 2.0, None, True):
        with pytest.raises((TypeError, ValueError), match="num_classes: expected an integer >= 1"):
            module(wrong, 4) if module in (FeatureQueue, PrototypeBank) else module(wrong)


@pytest.mark.parametrize("module", MODULES[:6])
def test_modules_refuse_what_the_config_refuses(module: Any) -> None:
    positional = {FeatureQueue: (3, 4), PrototypeBank: (3, 4), PrototypeContrastiveLoss: ()}.get(module, (3,))
    for name in inspect.signature(module).parameters:
        for value in WRONG.get(name, ()):
            with pytest.raises((TypeError, ValueError), match=rf"{name}(\[\d\])?: expected"):
                module(*positional, **{name: value})


def test_arguments_of_covers_every_field() -> None:
    """A field that no module takes would have no effect; the head itself reads the few named here."""
    config = BRPGConfig()
    taken = {name for module in MODULES for name in config.arguments_of(module)}
    assert FIELDS.keys() - taken == {
        "grid_size",
        "unlabeled_samples_per_image",
        "loss_weight",
        "labeled_weight",
        "unlabeled_weight",
        "pseudo_label_share",
    }
