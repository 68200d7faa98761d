"""Gradient penalties: what ``create_graph=True`` gives is differentiated rightly, against the slow version."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import reference
import torch
from builders import fresh, head, labeled, random_bank, set_prototypes, unlabeled
from torch import Tensor, nn
from torch.testing import assert_close

from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.kernels import taps


@pytest.fixture(autouse=True, params=["numba", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "torch":
        monkeypatch.setattr(taps, "_compiled", lambda *_: False)
    return request.param


def penalty(loss: Tensor, leaves: list[Tensor], autocast: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the loss, and of the sum of their squares."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):  # whoever calls backward may be under it
        first = torch.autograd.grad(loss, leaves, create_graph=True)
    return list(first), list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))


def expected(first: LabeledBatch, second: UnlabeledBatch, prototypes: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """The loss in float64, differentiable any number of times."""
    total = first.features.new_zeros((), dtype=torch.float64)
    grid = [(b, y, x) for b in range(len(first.labels)) for y, x in reference.grid_points(*first.labels.shape[1:], 6)]
    sure = (second.confidence >= threshold).nonzero().tolist()
    for maps, labels, pixels in (
        (first.features, first.labels, grid),
        (second.features, second.pseudo_labels, [tuple(p) for p in sure]),
    ):
        large = reference.upsample(maps, *labels.shape[1:])
        points, targets = reference._read(large, labels, pixels)
        total = total + reference.contrastive_loss(points, targets, prototypes.double(), mask, 0.1)
    return total


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("autocast", [False, True])
def test_of_the_loss_of_a_head(layout: torch.memory_format, autocast: bool) -> None:
    module = head(warmup=0, collect=0, unlabeled_samples_per_image=10**4, loss_weight=1.0)
    set_prototypes(module, share=0.8)
    bank, mask = module.bank.prototypes.clone(), module.bank.mask.clone()
    first, second = fresh(labeled(), logits=None), unlabeled()
    leaves = [batch.features.detach().clone(memory_format=layout).requires_grad_() for batch in (first, second)]
    first, second = (fresh(batch) for batch in (first, second))
    for batch, leaf in zip((first, second), leaves, strict=True):
        object.__setattr__(batch, "features", leaf)
    out = module(first, second, iteration=30)
    found = penalty(out.loss, leaves, autocast)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for batch, leaf in zip((first, second), exact, strict=True):
        object.__setattr__(batch, "features", leaf)
    threshold = float(out.metrics["pseudo_threshold"])
    loss = expected(first, second, bank, mask, threshold)
    assert_close(out.loss.double(), loss, rtol=1e-5, atol=1e-6)
    for own, right in zip(found, penalty(loss, exact), strict=True):
        assert_close([g.double() for g in own], right, rtol=1e-4, atol=1e-6)
        assert all(g.abs().sum() > 0 for g in right)


def test_a_gradient_penalty_trains_a_network() -> None:
    """Gradients of the weights of a network, through the gradients of its features."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 5, 1))
    module = head(warmup=0, collect=0)
    set_prototypes(module)
    batch = fresh(labeled(), logits=None)
    features = network(torch.rand(len(batch.features), 3, *batch.features.shape[2:]))
    out = module(LabeledBatch(features=features, labels=batch.labels), iteration=30)
    (gradient,) = torch.autograd.grad(out.loss, features, create_graph=True)
    gradient.square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.abs().sum() > 0) or parameter is network[2].bias
        assert parameter.grad.isfinite().all()


def test_of_similarities_to_rows_without_direction() -> None:
    bank, _ = random_bank(3, 2, 4, 0)
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    rows[1], rows[2], rows[3, 0], rows[4, 1] = 0, 1e30, torch.nan, torch.inf
    rows.requires_grad_()
    similarity = bank.similarity(rows)
    counted = torch.where(similarity.isfinite(), similarity, 0.0).square().sum()
    (gradient,), (second,) = penalty(counted, [rows])
    assert gradient.isfinite().all()
    assert second.isfinite().all()
    assert bool((second[[0, 5]].abs().sum(1) > 0).all())
    assert not second[1:5].any()


def test_the_first_derivative_is_the_same_either_way() -> None:
    bank, _ = random_bank(4, 3, 8, 1)
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    gradients = [
        torch.autograd.grad((bank.similarity(rows).clamp(min=-2) * weights).sum(), rows, create_graph=create)[0]
        for create in (False, True)
    ]
    assert_close(*gradients)
