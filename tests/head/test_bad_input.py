"""Bad input is refused, and changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import (
    DIM,
    fresh,
    head,
    labeled,
    run,
    same,
    state,
    step,
    unlabeled,
)
from torch import Tensor

from brpg_lib import BRPGConfig, LabeledBatch, PrototypeHead, Schedule


def poke(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.detach().clone()
    changed[0, 1, 2] = value
    return changed


def wrong_batches() -> dict[str, tuple[str, Callable[[], tuple[Any, Any]]]]:
    """Name -> (start of the message, how to make the batches)."""
    meta = {"features": torch.zeros(2, DIM, 9, 11, device="meta"), "logits": torch.zeros(2, 3, 9, 11, device="meta")}
    labels = torch.zeros(2, 17, 21, dtype=torch.int64)
    return {
        "no batch": (r"labeled: expected a LabeledBatch, found dict", lambda: ({}, None)),
        "no unlabeled batch": (r"unlabeled: expected an UnlabeledBatch", lambda: (labeled(), labeled())),
        "other D": (r"labeled\.features: expected 5 channels", lambda: (labeled(dim=7), unlabeled())),
        "other D, unlabeled": (r"unlabeled\.features: expected 5 channels", lambda: (labeled(), unlabeled(dim=7))),
        "other C": (r"labeled\.logits: expected 3 channels", lambda: (labeled(num_classes=2), unlabeled())),
        "other C, weak": (
            r"unlabeled\.weak_logits: expected 3 channels",
            lambda: (labeled(), unlabeled(num_classes=2)),
        ),
        "label too large": (
            r"labeled\.labels: expected classes 0\.\.2 or ignore_index 255, found 1",
            lambda: (fresh(labeled(), labels=poke(labels, 3)), unlabeled()),
        ),
        "negative label": (
            r"labeled\.labels: expected classes",
            lambda: (fresh(labeled(), labels=poke(labels, -1)), unlabeled()),
        ),
        "pseudo label too large": (
            r"unlabeled\.pseudo_labels: expected classes",
            lambda: (labeled(), fresh(unlabeled(), pseudo_labels=poke(labels, 254))),
        ),
        "nan confidence": (
            r"unlabeled\.confidence: expected values in \[0, 1\]",
            lambda: (labeled(), fresh(unlabeled(), confidence=poke(unlabeled().confidence, torch.nan))),
        ),
        "other device": (
            r"labeled\.features: expected a tensor on cpu, like the module, found meta",
            lambda: (LabeledBatch(**meta, labels=labels.to("meta")), unlabeled()),
        ),
        "other sizes": (
            r"labeled\.labels: expected an integer tensor",
            lambda: (fresh(labeled(), labels=labels[:1]), unlabeled()),
        ),
        "float labels": (r"labeled\.labels: expected", lambda: (fresh(labeled(), labels=labels.float()), unlabeled())),
        "integer features": (
            r"labeled\.features: expected a floating-point",
            lambda: (dataclasses.replace(labeled(), features=torch.zeros(2, DIM, 9, 11).long()), unlabeled()),
        ),
    }


@pytest.mark.parametrize("name", wrong_batches())
@pytest.mark.parametrize("steps", [0, 2, 4, 6])
def test_bad_input_is_refused_and_changes_nothing(name: str, steps: int) -> None:
    module = run(head(class_adaptive=(0.3, 0.9), recluster_every=2), steps)
    before = state(module)
    message, make = wrong_batches()[name]
    with pytest.raises((TypeError, ValueError), match=f"^({message})"):
        module(*make())
    assert same(state(module), before)
    step(module)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 2.0}, "num_classes"),
        ({"feature_dim": 0}, "feature_dim"),
        ({"schedule": None}, "schedule"),
        ({"config": {}}, "config"),
        ({"config": BRPGConfig(fixed_threshold_classes=(3,))}, "fixed_threshold_classes"),
        ({"queue_dtype": torch.float64}, "queue_dtype"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "0"}, "seed"),
    ],
)
def test_bad_arguments(change: dict[str, Any], field: str) -> None:
    arguments = {"num_classes": 3, "feature_dim": 4, "schedule": Schedule(warmup=0, collect=1, total=2)} | change
    with pytest.raises((TypeError, ValueError), match=f"^{field}: expected .+, found "):
        PrototypeHead(**arguments)


def test_no_parameters() -> None:
    module = head()
    assert not list(module.parameters())
    assert "num_classes=3" in repr(module)
