"""Thousands of bad arguments: each is refused by name, changing nothing, or handled without a NaN."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from builders import filled_queue, head, labeled, run, same, samples, unlabeled
from forms import FORMS, Averaged, UnderDefault
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import brpg_lib
from brpg_lib import BRPGConfig, LabeledBatch, PrototypeHead, Schedule, UnlabeledBatch
from brpg_lib.validation import describe

EXAMPLES, FEW, MANY = 190, 60, 2000
COUNTS: Counter[str] = Counter()

# --- Values that may be wrong -----------------------------------------------------------------------------------------

SPECIAL = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, 3e38, -3e38, float("nan"), float("inf"), -float("inf"))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool, torch.complex64)  # fmt: skip
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 6),
    st.sampled_from([-(2**70), -(2**31), 254, 255, 2**40, 2**70]),
    st.floats(-2, 2),
    st.sampled_from(SPECIAL),
    st.text(max_size=6),
    st.sampled_from(["cosine", "mean", "none", "cpu", "torch.float32", "confidence"]),
    st.lists(st.one_of(st.integers(-2, 5), st.floats(-1, 2), st.none()), max_size=4),
    st.tuples(st.integers(-2, 4), st.integers(-2, 4)),
    st.tuples(st.floats(-1, 2), st.floats(-1, 2)),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.builds(object),
    st.sampled_from([torch.float32, torch.device("cpu"), torch.nn.ReLU(), BRPGConfig(), int]),
)


@st.composite
def tensors(draw: Callable[..., Any], like: Tensor | None = None) -> Tensor:
    """A tensor of any shape and dtype, or one like a valid one but for a detail."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shape = list(draw(st.lists(st.integers(0, 6), max_size=5)) if like is None else like.shape)
    dtype = draw(st.sampled_from(DTYPES)) if like is None else like.dtype
    change = draw(st.sampled_from(["shape", "dtype", "values", "values", "layout", "meta"]))
    if like is not None and change == "shape" and shape:
        axis = draw(st.integers(0, len(shape) - 1))
        match draw(st.sampled_from(["longer", "shorter", "none", "drop", "add"])):
            case "longer":
                shape[axis] += 1
            case "shorter":
                shape[axis] = max(0, shape[axis] - 1)
            case "none":
                shape[axis] = 0
            case "drop":
                shape.pop(axis)
            case "add":
                shape.insert(axis, 1)
    elif change == "dtype":
        dtype = draw(st.sampled_from(DTYPES))
    if like is not None and change != "shape":
        value = like.detach().clone()
    else:
        value = 3 * torch.randn(shape, generator=random)
    value = value.to(dtype)
    if change == "values" and value.numel():
        count = draw(st.integers(1, value.numel()))
        place = torch.randperm(value.numel(), generator=random)[:count]
        flat = value.flatten()
        if value.is_floating_point() or value.is_complex():
            flat[place] = torch.tensor(draw(st.sampled_from(SPECIAL)), dtype=torch.float64).to(value.dtype)
        elif value.dtype != torch.bool:
            low, high = torch.iinfo(value.dtype).min, torch.iinfo(value.dtype).max
            flat[place] = min(max(draw(st.sampled_from([-1, 3, 200, 254, 255, 2**31, low, high])), low), high)
        else:
            flat[place] = draw(st.booleans())
        value = flat.view(value.shape)
    if change == "layout" and value.ndim > 1:
        value = value.transpose(0, -1).contiguous().transpose(0, -1)
    return value.to("meta") if change == "meta" and draw(st.integers(0, 3)) == 0 else value


def anything(valid: Any) -> st.SearchStrategy[Any]:
    """Something in place of a valid value."""
    if isinstance(valid, Tensor):
        return st.one_of(tensors(valid), tensors(valid), tensors(), PLAIN)
    return st.one_of(PLAIN, PLAIN, tensors())


# --- What is called ---------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """A callable and its valid arguments."""

    call: Callable[..., Any]
    arguments: dict[str, Any]


def fields(value: Any, leave_out: str = "") -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.name != leave_out}


SCHEDULE = Schedule(warmup=1, collect=3, total=60)
ROWS = samples(torch.randn(4, 5), 1, 0)
ALONE: dict[str, Target] = {
    "BRPGConfig": Target(BRPGConfig, fields(BRPGConfig())),
    "BRPGConfig.from_dict": Target(lambda **f: BRPGConfig.from_dict(f), fields(BRPGConfig()) | {"extra": 1}),
    "Schedule": Target(Schedule, fields(SCHEDULE)),
    "Schedule.from_epochs": Target(
        Schedule.from_epochs,
        {"warmup": 1, "collect": 1, "total": 80, "iters_per_epoch": 10, "ramp_start": 5, "min_rows": 0,
         "pseudo_threshold_range": (0.8, 0.95), "extrapolate_threshold": False, "recluster_every": None,
         "max_collect": None},
    ),
    "prototype_contrastive_loss": Target(
        brpg_lib.prototype_contrastive_loss,
        {"similarity": torch.rand(6, 3), "classes": torch.tensor([0, 1, 2, 2, 255, 0]), "temperature": 0.1,
         "weight": torch.ones(3), "misclassified_weight": 1.0, "point_balance": 0.5,
         "ignore_index": 255, "reduction": "mean"},
    ),
    "ConfidenceSampler": Target(
        brpg_lib.ConfidenceSampler,
        {"num_classes": 3, "seed": 0, "samples_per_image": 5, "confidence_threshold": 0.8, "class_adaptive": None,
         "fixed_threshold_classes": (), "class_balance": None},
    ),
    "FeatureQueue": Target(
        brpg_lib.FeatureQueue,
        {"num_classes": 3, "feature_dim": 4, "queue_size": 5, "dtype": torch.float32, "separate_confidence": True,
         "rare_class_fallback": False, "device": None},
    ),
    "AdaptiveSplitter": Target(
        brpg_lib.AdaptiveSplitter,
        {"num_classes": 3, "num_prototypes": (2, 2), "split_fraction": 0.05, "dispersion": "cosine",
         "split_increment": 1},
    ),
    "OnlineClusterer": Target(
        brpg_lib.OnlineClusterer,
        {"num_classes": 3, "centroid": "mean", "restarts": 8, "max_iterations": 100, "backend": None, "seed": 0},
    ),
    "PrototypeBank": Target(
        brpg_lib.PrototypeBank,
        {"num_classes": 3, "feature_dim": 4, "num_prototypes": (2, 2), "momentum": 0.99, "misclassified_weight": 1.0,
         "split_increment": 1},
    ),
    "PrototypeContrastiveLoss": Target(
        brpg_lib.PrototypeContrastiveLoss,
        {"temperature": 0.1, "weight": None, "misclassified_weight": 1.0, "point_balance": 0.5,
         "ignore_index": 255, "reduction": "mean"},
    ),
    "ProjectionHead": Target(brpg_lib.ProjectionHead, {"in_channels": 3, "feature_dim": 4}),
    "PrototypeHead": Target(
        PrototypeHead,
        {"num_classes": 3, "feature_dim": 4, "schedule": SCHEDULE, "config": BRPGConfig(queue_size=5), "seed": 0,
         "queue_dtype": torch.float32, "queue_device": None},
    ),
}  # fmt: skip
"""Nothing there that could be changed."""


def on_labeled(module: nn.Module) -> Target:
    valid = fields(labeled(7))
    return Target(lambda **changed: module(LabeledBatch(**(valid | changed)), unlabeled(7)), valid)


def on_unlabeled(module: nn.Module) -> Target:
    valid = fields(unlabeled(7))
    return Target(lambda **changed: module(labeled(7), UnlabeledBatch(**(valid | changed))), valid)


def in_form(name: str, part: int) -> Callable[[nn.Module], Target]:
    """The same with labeled (0) or unlabeled (1) batches in another form."""
    num_classes, form = FORMS[name]
    batches = form(labeled(7, num_classes=num_classes), unlabeled(7, num_classes=num_classes))
    valid = fields(batches[part])

    def target(module: nn.Module) -> Target:
        def call(**changed: Any) -> Any:
            pair: list[Any] = [*batches]
            pair[part] = type(pair[part])(**(valid | changed))
            return module(*pair)

        return Target(call, valid)

    return target


def trained_in_form(name: str, steps: int) -> PrototypeHead:
    num_classes, form = FORMS[name]
    module = head(num_classes)
    for i in range(steps):
        module(*form(labeled(10 * i, num_classes=num_classes), unlabeled(10 * i, num_classes=num_classes)))
    return module


def with_average(steps: int) -> Averaged:
    module = Averaged(head())
    for i in range(steps):
        module(labeled(10 * i), unlabeled(10 * i))
    return module


def under_default(dtype: torch.dtype, steps: int) -> UnderDefault:
    module = UnderDefault(head, dtype)
    for i in range(steps):
        module(labeled(10 * i), unlabeled(10 * i))
    return module


def queue() -> brpg_lib.FeatureQueue:
    return filled_queue({(0, 0): torch.randn(9, 5), (2, 1): torch.randn(3, 5)}, 3, queue_size=10)


def bank() -> brpg_lib.PrototypeBank:
    module = brpg_lib.PrototypeBank(3, 5)
    module.set(torch.randn(3, 2, 3, 5), torch.ones(3, 2, 3, dtype=torch.bool))
    return module


POINTS = {"features": torch.randn(6, 5), "classes": torch.tensor([0, 1, 2, 2, 255, 0])}
NEW = {"vectors": torch.randn(3, 2, 3, 5), "mask": torch.ones(3, 2, 3, dtype=torch.bool)}
WANTED = torch.tensor([[2, 2], [1, 0], [2, 2]])
OWNED: dict[str, tuple[nn.Module, Callable[[Any], Target]]] = {
    "labeled, collect": (run(head(), 2), on_labeled),
    "labeled, cluster": (run(head(), 4), on_labeled),
    "labeled, learn": (run(head(), 6), on_labeled),
    "labeled, learn and collect": (run(head(recluster_every=2), 6), on_labeled),
    "unlabeled, collect": (run(head(), 2), on_unlabeled),
    "unlabeled, learn": (run(head(), 6), on_unlabeled),
    "unlabeled, learn and collect": (run(head(recluster_every=2), 6), on_unlabeled),
    "head": (run(head(), 6), lambda m: Target(m, {"labeled": labeled(7), "unlabeled": unlabeled(7), "iteration": 6})),
    **{
        f"{name}, {('labeled', 'unlabeled')[part]}, {phase}": (trained_in_form(name, steps), in_form(name, part))
        for name in FORMS
        for part, phase, steps in ((0, "collect", 2), (1, "collect", 2), (0, "learn", 6), (1, "learn", 6))
    },
    "averaged, labeled, collect": (with_average(2), on_labeled),
    "averaged, labeled, learn": (with_average(6), on_labeled),
    "averaged, unlabeled, learn": (with_average(6), on_unlabeled),
    **{
        f"{dtype}, {name}": (under_default(dtype, steps), on)
        for dtype in (torch.bfloat16, torch.float64)
        for name, on, steps in (("labeled, collect", on_labeled, 2), ("unlabeled, learn", on_unlabeled, 6))
    },
    "bank.set": (bank(), lambda m: Target(m.set, NEW)),
    "bank.update": (bank(), lambda m: Target(m.update, POINTS)),
    "bank.similarity": (bank(), lambda m: Target(m.similarity, {"features": POINTS["features"]})),
    "bank.classify": (bank(), lambda m: Target(m.classify, {"features": POINTS["features"]})),
    "queue.append": (
        queue(),
        lambda m: Target(lambda **changed: m.append(dataclasses.replace(ROWS, **changed)), fields(ROWS, "dropped")),
    ),
    "queue.group": (queue(), lambda m: Target(m.group, {"class_index": 0, "group": 0})),
    "clusterer": (queue(), lambda m: Target(brpg_lib.OnlineClusterer(3), {"queue": m, "num_prototypes": WANTED})),
    "splitter": (queue(), lambda m: Target(brpg_lib.AdaptiveSplitter(3), {"queue": m})),
}
"""With the module whose state must not suffer."""


# --- What must hold ---------------------------------------------------------------------------------------------------


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, tuple):
        for inner in value:
            yield from tensors_in(inner)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in(vars(value))


def state_of(module: nn.Module) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}


MAY_BE_NAN = ("splitter", "bank.similarity")
"""Documented: the dispersion of an empty queue; the similarity of what is not finite is -inf."""


def check(name: str, target: Target, module: nn.Module | None, changes: dict[str, Any]) -> None:
    """Call with the changed arguments: refused by name with nothing changed, or a result without NaN."""
    COUNTS[name] += 1
    before = None if module is None else state_of(module)
    shown = {key: describe(v) if isinstance(v, Tensor) else repr(v) for key, v in changes.items()}
    try:
        result = target.call(**(target.arguments | changes))
    except (ValueError, TypeError) as error:
        assert any(field in str(error) for field in changes), f"{shown} is not named by: {error}"  # noqa: PT017
        if module is not None:
            assert same(before, state_of(module)), f"{shown} was refused, but something changed"
        return
    if name not in MAY_BE_NAN:
        for value in tensors_in(result):
            assert not value.isnan().any(), f"NaN from {shown}"
    if module is not None:
        for key, value in module.state_dict().items():
            assert not value.is_floating_point() or value.isfinite().all(), f"{key} is not finite after {shown}"


def fuzz(name: str, data: st.DataObject) -> None:
    """Change one or two arguments."""
    module = copy.deepcopy(OWNED[name][0]) if name in OWNED else None
    target = ALONE[name] if module is None else OWNED[name][1](module)
    names = data.draw(st.lists(st.sampled_from(sorted(target.arguments)), min_size=1, max_size=2, unique=True))
    check(name, target, module, {field: data.draw(anything(target.arguments[field]), label=field) for field in names})


OTHERWISE = [name for name in OWNED if name.startswith((*FORMS, "averaged", "torch."))]
"""Other forms and circumstances; they share most of what refuses with the plain ones."""


@pytest.mark.parametrize("name", OTHERWISE)
@settings(max_examples=FEW)
@given(data=st.data())
def test_bad_arguments_otherwise(name: str, data: st.DataObject) -> None:
    fuzz(name, data)


@pytest.mark.parametrize("name", [name for name in (*ALONE, *OWNED) if name not in OTHERWISE])
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_bad_arguments(name: str, data: st.DataObject) -> None:
    fuzz(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ALONE, *OWNED])
@settings(max_examples=MANY)
@given(data=st.data())
def test_bad_arguments_at_length(name: str, data: st.DataObject) -> None:
    fuzz(name, data)


def test_there_were_thousands() -> None:
    """Hypothesis stops early where it has seen all there is."""
    if set(COUNTS) < {*ALONE, *OWNED}:
        pytest.skip("only a part of this file was run")
    assert sum(COUNTS.values()) >= 5000, COUNTS
