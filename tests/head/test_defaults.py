"""Whatever the process has as its default dtype or device: a head computes, and keeps, the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from builders import fresh, gradients, head, labeled, same, state, unlabeled

from brpg_lib import PrototypeHead

pytestmark = pytest.mark.usefixtures("everywhere")
STEPS = 9
OPTIONS: list[dict[str, Any]] = [
    {},
    {"samples_per_image": 5, "class_balance": 0.5, "centroid": "confidence"},
    {"class_adaptive": (0.6, 0.9), "dispersion": "l2", "backend": "torch"},
    {"rare_class_fallback": True, "samples_per_image": 5},
    {"separate_confidence": False, "queue_dtype": torch.bfloat16},
    {"pseudo_label_share": 0.5, "point_balance": 1.0, "misclassified_weight": 2.0, "align_corners": False},
]
BATCHES = [(labeled(10 * i), unlabeled(10 * i)) for i in range(STEPS)]


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """To be set by a test, and put back."""
    yield request.param
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def trained(module: PrototypeHead) -> tuple[PrototypeHead, list[Any]]:
    """A head after some steps, with what each gave."""
    found = []
    for first, second in BATCHES:
        pair = fresh(first), fresh(second)
        out = module(*pair)
        found.append((out.loss, out.loss_labeled, out.loss_unlabeled, out.metrics, gradients(out, *pair)))
    return module, found


@pytest.mark.parametrize("options", OPTIONS)
def test_default_dtype(options: dict[str, Any], default: torch.dtype) -> None:
    plain, expected = trained(head(**options))
    torch.set_default_dtype(default)
    module, found = trained(head(**options))
    again = head(**options)
    again.load_state_dict(module.state_dict())
    repr(module)
    torch.set_default_dtype(torch.float32)
    assert same(state(module), state(plain))
    assert same(state(again), state(plain))
    assert same(found, expected)
    assert {value.dtype for _, value in module.named_state()} == {value.dtype for _, value in plain.named_state()}


@pytest.mark.parametrize("options", OPTIONS)
def test_default_device(options: dict[str, Any], default: torch.dtype) -> None:
    """A default that is set after the head was made says nothing of where it works."""
    plain, expected = trained(head(**options))
    module = head(**options)
    torch.set_default_dtype(default)
    torch.set_default_device("meta")
    _, found = trained(module)
    torch.set_default_device(None)
    assert same(state(module), state(plain))
    assert same(found, expected)
