"""Calls of a head whose effect would be lost, or come twice."""

from __future__ import annotations

import pytest
import torch
from builders import fresh, head, labeled, learning_head, same, state, step, unlabeled
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from brpg_lib import LabeledBatch, PrototypeHead


@pytest.fixture(params=["new", "learning"])
def module(request: pytest.FixtureRequest) -> PrototypeHead:
    return head() if request.param == "new" else learning_head()


def test_a_replica_is_refused(module: PrototypeHead) -> None:
    before = state(module)
    replica = module._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match=r"PrototypeHead: expected a call outside of nn\.DataParallel"):
        step(replica, 7)
    assert same(before, state(module))
    replica.eval()(fresh(labeled()), fresh(unlabeled()))  # which changes nothing


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_call_that_the_backward_pass_repeats_is_refused(module: PrototypeHead, use_reentrant: bool) -> None:
    batch = labeled()
    features = batch.features.detach().requires_grad_()

    def loss(values: Tensor) -> Tensor:
        scaled = values.tanh().exp()
        return module(LabeledBatch(features=scaled, logits=batch.logits, labels=batch.labels)).loss + scaled.sum()

    total = checkpoint(loss, features, use_reentrant=use_reentrant)
    after = state(module)
    if module.iteration == 1 and not use_reentrant:
        total.backward()  # a loss of 0 saves nothing that the call would have to be repeated for
    else:
        with pytest.raises(RuntimeError, match="call it outside of what is checkpointed"):
            total.backward()
    assert same(after, state(module))


def test_a_head_behind_a_checkpointed_network_is_fine(module: PrototypeHead) -> None:
    batch = labeled()
    features = checkpoint(torch.tanh, batch.features.detach().requires_grad_(), use_reentrant=False)
    module(LabeledBatch(features=features, logits=batch.logits, labels=batch.labels)).loss.backward()
