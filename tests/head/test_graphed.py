"""A head whose learn step is a CUDA graph: what it does is what the head does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import fresh, gradients, head, labeled, same, state, unlabeled
from torch import Tensor
from torch.testing import assert_close

from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.graphs import GraphedHead


def batches(i: int, device: torch.device, **options: Any) -> tuple[LabeledBatch, UnlabeledBatch]:
    return fresh(labeled(10 * i, **options).to(device)), fresh(unlabeled(10 * i, **options).to(device))


class Capture:
    """In the place of torch's: runs a function three times to warm up, as torch does, and then at each replay."""

    def __init__(self) -> None:
        self.captured, self.replays = 0, 0

    def __call__(self, step: Callable[..., tuple[Tensor, ...]], samples: tuple[Tensor, ...]) -> Callable[..., Any]:
        self.captured += 1
        for _ in range(3):
            out = step(*samples)
            torch.autograd.grad(out[0], [value for value in samples if value.requires_grad])

        def replay(*tensors: Tensor) -> tuple[Tensor, ...]:
            self.replays += 1
            return step(*tensors)

        return replay


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    """As if the CPU were CUDA."""
    made = Capture()
    monkeypatch.setattr("brpg_lib.graphs.CAPTURING", "cpu")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", made)
    return made


def test_a_graph_is_captured_once_and_changes_nothing(capture: Capture) -> None:
    device = torch.device("cpu")
    module, twin = head(), head()
    step = module.make_graphed()
    for i in range(9):
        own, other = batches(i, device), batches(i, device)
        out, expected = step(*own), twin(*other)
        assert out.phase is expected.phase
        assert torch.equal(out.loss, expected.loss)
        assert out.metrics.keys() == expected.metrics.keys()
        assert all(torch.equal(out.metrics[name], expected.metrics[name]) for name in out.metrics)
        for one, two in zip(gradients(out, *own), gradients(expected, *other), strict=True):
            assert torch.equal(one, two)
        assert module.iteration == twin.iteration == i + 1
        assert module.settled == twin.settled
    assert same(state(module), state(twin)), "the rehearsals of the capture have left nothing"
    assert (capture.captured, capture.replays) == (1, 4)


def test_what_a_graph_cannot_do_is_called(capture: Capture) -> None:
    device = torch.device("cpu")
    module = head()
    step = module.make_graphed()
    for i in range(6):
        step(*batches(i, device))
    assert capture.replays == 1
    first, second = batches(6, device)
    step(first)  # no unlabeled images
    step(*batches(7, device, size=(5, 7)))
    module.eval()
    assert step(first, second).loss > 0
    module.train()
    assert capture.replays == 1
    step(*batches(8, device))
    assert (capture.captured, capture.replays) == (1, 2)


def test_nothing_is_captured_on_the_cpu() -> None:
    module, twin = head(), head()
    step = GraphedHead(module)
    for i in range(8):
        assert torch.equal(step(labeled(10 * i), unlabeled(10 * i)).loss, twin(labeled(10 * i), unlabeled(10 * i)).loss)
    assert step._captured is None


@pytest.mark.cuda
def test_a_replay_is_a_step() -> None:
    device = torch.device("cuda")
    module, twin = head().to(device), head().to(device)
    step = module.make_graphed()
    for i in range(12):
        own, other = batches(i, device), batches(i, device)
        out, expected = step(*own), twin(*other)
        assert_close(out.loss, expected.loss, atol=1e-5, rtol=1e-4)
        for one, two in zip(gradients(out, *own), gradients(expected, *other), strict=True):
            assert_close(one, two, atol=1e-6, rtol=1e-3)
        assert_close(module.bank.prototypes, twin.bank.prototypes, atol=1e-5, rtol=1e-4)
        assert module.iteration == twin.iteration == i + 1
    assert step._captured is not None
