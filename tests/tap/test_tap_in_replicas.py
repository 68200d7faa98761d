"""Taps in the replicas of DataParallel."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from tapped import Net, Trainer, X, evaluate, gradients
from torch import Tensor, nn
from torch.testing import assert_close

from brpg_lib import FeatureTap


class Placed(Tensor):
    """On the CPU, but says that it is on a GPU; what is computed from it says so, too."""

    index: int

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if sum(issubclass(kind, Placed) for kind in types) > 1:  # they meet in one place
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    def get_device(self) -> int:
        return self.index


PLACES = [type(f"Placed{index}", (Placed,), {"index": index}) for index in range(3)]


class Replicated(nn.DataParallel):  # type: ignore[type-arg]
    """nn.DataParallel without GPUs: replicas as torch makes them, in threads that end in reverse order."""

    def __init__(self, module: nn.Module, device_ids: list[int]) -> None:
        super().__init__(module)
        self.device_ids, self.output_device, self.dim = device_ids, torch.device("cpu"), 0

    def replica(self, module: nn.Module) -> nn.Module:
        twin = module._replicate_for_data_parallel()
        for name, child in module.named_children():
            setattr(twin, name, self.replica(child))
        for name, parameter in module._parameters.items():
            setattr(twin, name, parameter)
        return twin

    def forward(self, *inputs: Any, **kwargs: Any) -> Tensor:
        chunks = inputs[0].chunk(len(self.device_ids))
        places = [chunk.as_subclass(PLACES[index]) for chunk, index in zip(chunks, self.device_ids, strict=False)]
        replicas = [self.replica(self.module) for _ in places]
        found: dict[int, Any] = {}
        grad = torch.is_grad_enabled()

        def work(index: int, after: threading.Thread | None) -> None:
            if after is not None:
                after.join()
            torch.set_grad_enabled(grad)
            try:
                found[index] = replicas[index](places[index], *inputs[1:], **kwargs).as_subclass(Tensor)
            except Exception as error:
                found[index] = error

        last = None
        for index in reversed(range(len(places))):
            last = threading.Thread(target=work, args=(index, last))
            last.start()
        assert last is not None
        last.join()
        for error in found.values():
            if isinstance(error, Exception):
                raise error
        return torch.cat([found[index] for index in range(len(places))])


@pytest.mark.parametrize("images", [1, 5])
def test_replicas_put_their_pieces_together(net: Net, images: int) -> None:
    net.fuse[1] = nn.Identity()  # batch statistics would differ
    net.fuse[2] = nn.ReLU()
    x = torch.randn(images, 3, 4, 5)
    parallel = Replicated(net, [2, 0, 1])
    expected = gradients(net, "fuse", x)
    found = gradients(parallel, "fuse", x)
    assert_close(found, expected)
    with FeatureTap(parallel, "fuse") as tap:
        wide, narrow = parallel(x, True), parallel(x[:2])
        evaluate(parallel)
        first, second = tap.take(2)
        assert_close(net.classifier(first), wide)
        assert_close(net.classifier(second), narrow)


class CallsTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, uneven: bool = False) -> Tensor:
        if uneven and isinstance(x, PLACES[1]):
            return self.layer(x)
        return self.layer(self.layer(x))


def test_a_layer_called_twice_in_each_replica() -> None:
    module = CallsTwice()
    with FeatureTap(module, "layer") as tap:
        module(X)
        expected = tap.take(2)
    parallel = Replicated(module, [1, 0])
    with FeatureTap(parallel, "layer") as tap:
        parallel(X)
        assert_close(tap.take(2), expected)
        with pytest.raises(RuntimeError, match="not all replicas"):
            parallel(X, uneven=True)
        parallel(X)
        assert_close(tap.take(2), expected)


def test_a_pass_of_replicas_that_failed_leaves_nothing(net: Net) -> None:
    parallel = Replicated(net, [0, 1])
    with FeatureTap(parallel, "backbone") as tap:
        expected = parallel(X)
        tap.take(1)
        with pytest.raises(TypeError):
            parallel(X, *"too many")
        net.classifier.register_forward_pre_hook(fail := lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            parallel(X)
        assert callable(fail)
        net.classifier._forward_pre_hooks.clear()
        assert_close(parallel(X), expected)
        assert len(tap.take(1)[0]) == 2


def test_replicas_of_a_network_that_was_tapped_without_them_are_refused(net: Net) -> None:
    parallel = Replicated(net, [0, 1])
    with (
        FeatureTap(net, "fuse"),
        pytest.raises(RuntimeError, match=r"FeatureTap\(parallel, 'fuse'\)"),
    ):
        parallel(X)


def test_dataparallel_on_the_cpu_and_in_another_module(net: Net) -> None:
    for wrapped in (nn.DataParallel(net), nn.Sequential(nn.DataParallel(net))):
        path = "0.module.fuse" if isinstance(wrapped, nn.Sequential) else "fuse"
        assert_close(gradients(wrapped, path, X), gradients(net, "fuse", X))
    assert_close(gradients(nn.Sequential(nn.DataParallel(net)), "0.fuse", X), gradients(net, "fuse", X))


def test_a_teacher_copied_out_of_its_replicas(net: Net) -> None:
    parallel = Replicated(net, [0, 1])
    with FeatureTap(parallel, "fuse"):
        teacher, twin = copy.deepcopy(net), copy.deepcopy(parallel)
    teacher(X)
    twin(X)
    trainer = Trainer(parallel)
    twins = copy.deepcopy(trainer)
    twins.net(X)
    assert len(twins.tap.take(1)[0]) == 2
