"""What the optimizers of a training tell of mistakes: too many calls in a step, losses and weights that nobody uses."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from builders import head, labeled, unlabeled
from torch import Tensor, nn

from brpg_lib import LabeledBatch, ProjectionHead


@pytest.mark.parametrize("every", [1, 2, 8])
@pytest.mark.parametrize("given", [False, True])
def test_accumulated_gradients(every: int, given: bool) -> None:
    """Each small batch backpropagates its loss, so that nothing is left over; but the phases pass too fast."""
    module, weight = head(warmup=200, total=900), torch.zeros(5, 5, 1, 1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(60):
            first, second = labeled(10 * (i % 5)), unlabeled(10 * (i % 5))
            features = first.features.detach() + nn.functional.conv2d(first.features.detach(), weight)
            out = module(put_features(first, features), second, iteration=i // every if given else None)
            (out.loss / every).backward()
            if i % every == every - 1:
                optimizer.step()
    found = [str(warning.message) for warning in caught]
    assert len(found) == (every > 1 and not given)
    for text in found:
        assert f"called 40 times in {39 // every} steps of the optimizer" in text
        assert "pass iteration=, the count of these" in text


@pytest.mark.parametrize("other_first", [False, True])
def test_an_optimizer_that_makes_fewer_steps_beside_the_main_one_is_no_accumulation(other_first: bool) -> None:
    """Such as that of a discriminator, which may come first."""
    module = head(warmup=200, total=900)
    weights = [torch.zeros(5, requires_grad=True) for _ in range(2)]
    main, other = (torch.optim.SGD([weight], lr=0.1) for weight in weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(60):
            module(labeled(10 * (i % 5)), unlabeled(10 * (i % 5))).loss.backward()
            for optimizer in (other, main) if other_first else (main, other):
                if optimizer is main or i % 5 == 0:
                    optimizer.step()


@pytest.mark.parametrize("kind", ["two calls", "never added", "iteration given", "accumulated"])
def test_losses_that_nobody_uses(kind: str) -> None:
    module = head(warmup=200, total=900)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(50):
            given = i // 2 if kind == "iteration given" else None
            outs = [module(labeled(10 * (i % 5)), unlabeled(10 * (i % 5)), iteration=given)]
            if kind == "accumulated":
                outs[0].loss.backward()
            if kind != "never added":
                outs.append(module(labeled(3), unlabeled(3), iteration=given))
                sum(out.loss for out in outs if kind != "accumulated" or out is outs[1]).backward()  # type: ignore[union-attr]
    found = [str(warning.message) for warning in caught]
    if kind in ("iteration given", "accumulated"):
        assert found == []
    else:
        (text,) = found
        assert "of 40 calls of the head the loss of the call before had not been backpropagated" in text


class Trainer:
    """A network with an optimizer, and the head beside them."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer]) -> None:
        torch.manual_seed(0)
        self.net, self.head = nn.Conv2d(5, 5, 1), head()
        self.optimizer = make(self.net.parameters())

    def backward(self, index: int) -> Tensor:
        """Of one step."""
        first, second = labeled(10 * index), unlabeled(10 * index)
        features = self.net(first.features.detach())
        loss = self.head(put_features(first, features), second).loss + features.mean()
        self.optimizer.zero_grad()
        loss.backward()
        return loss

    def run(self, steps: int) -> None:
        for i in range(steps):
            self.backward(i)
            self.optimizer.step()

    def run_in_closures(self, steps: int) -> None:
        """As Lightning does: the step of the optimizer calls what computes the loss."""
        for i in range(steps):
            self.optimizer.step(partial(self.backward, i))


def put_features(batch: LabeledBatch, features: Tensor) -> LabeledBatch:
    return LabeledBatch(features=features, logits=batch.logits, labels=batch.labels)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("with_head", [True, False])
def test_a_training_resumed_without_its_head(make: Any, with_head: bool) -> None:
    first, second = Trainer(make), Trainer(make)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.run(5)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    if with_head:
        second.head.load_state_dict(first.head.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        second.run(3)
    found = [str(warning.message) for warning in caught]
    assert len(found) == (not with_head)
    assert with_head or "load head.state_dict() of the checkpoint too" in found[0]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_head_that_is_called_in_the_step_of_the_optimizer(make: Any) -> None:
    trainer = Trainer(make)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.run_in_closures(5)
    again = Trainer(make)
    again.optimizer.load_state_dict(trainer.optimizer.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again.run_in_closures(3)
    found = [str(warning.message) for warning in caught]
    counts = any("step" in state for state in again.optimizer.state.values())
    assert len(found) == counts, "a momentum buffer may be of the step before"
    assert not found or "load head.state_dict() of the checkpoint too" in found[0]


def test_the_optimizers_are_left_alone_afterwards() -> None:
    from torch.optim.optimizer import _global_optimizer_pre_hooks

    before = len(_global_optimizer_pre_hooks)
    trainer = Trainer(OPTIMIZERS["SGD"])
    trainer.head(labeled(), unlabeled())
    assert len(_global_optimizer_pre_hooks) == before + 1
    trainer.run(40)
    assert len(_global_optimizer_pre_hooks) == before
    other = Trainer(OPTIMIZERS["SGD"])
    other.head(labeled(), unlabeled())
    del other
    assert len(_global_optimizer_pre_hooks) == before


def test_a_projection_in_no_optimizer() -> None:
    def passes(projection: ProjectionHead, lr: float, included: bool = True) -> list[str]:
        optimizer = torch.optim.SGD(projection.parameters() if included else nn.Linear(1, 1).parameters(), lr=lr)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(120):
                projection(torch.rand(2, 3, 4, 4)).mean().backward()
                optimizer.step()
        return [str(warning.message) for warning in caught]

    assert passes(ProjectionHead(3, 4), 0.1) == []
    for options in ({"lr": 0.1, "included": False}, {"lr": 0.0}):
        (text,) = passes(ProjectionHead(3, 4), **options)  # type: ignore[arg-type]
        assert "the same as 100 training passes ago" in text
    with torch.no_grad():
        projection = ProjectionHead(3, 4)
        for _ in range(120):
            projection(torch.rand(2, 3, 4, 4))  # a teacher
    assert copy.deepcopy(projection).state_dict().keys() == projection.state_dict().keys()


def test_a_projection_in_a_long_warm_up() -> None:
    """Without weight decay the weights stay as long as the gradients are 0, as they are until the head learns."""

    def passes(projection: ProjectionHead, lr: float, weight: float) -> None:
        optimizer = torch.optim.Adam(projection.parameters(), lr=lr)
        for _ in range(230):
            optimizer.zero_grad()
            (weight * projection(torch.rand(2, 3, 4, 4)).square().mean()).backward()
            optimizer.step()

    learning, standing = ProjectionHead(3, 4), ProjectionHead(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes(learning, 0.01, weight=0)
        passes(learning, 0.01, weight=1)
        passes(standing, 0.0, weight=0)
    with pytest.warns(UserWarning, match="the same as 100 training passes ago"):
        passes(standing, 0.0, weight=1)


def test_a_projection_that_moves_in_between_is_left_alone() -> None:
    projection = ProjectionHead(3, 4)
    for _ in range(50):
        projection(torch.rand(2, 3, 4, 4))
    projection.to("meta")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(60):
            projection(torch.rand(2, 3, 4, 4, device="meta"))
