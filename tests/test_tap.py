"""Which outputs a tap keeps, and what it says when the count is off."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from brpg_lib import FeatureTap


class Net(nn.Module):
    """A decoder that one step calls in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.fuse = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
        self.classifier = nn.Conv2d(5, 2, 1)
        self.pair = Pair()

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        x = self.backbone(x)
        return self.classifier(self.fuse(torch.cat((x, 0.5 * x)) if twice else x))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


X = torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def evaluate(net: nn.Module) -> None:
    net.eval()
    with torch.no_grad():
        for _ in range(3):
            net(X)
    net.train()


def test_keeps_the_training_passes_only(net: Net) -> None:
    teacher = copy.deepcopy(net).requires_grad_(False)
    with FeatureTap(net, "fuse") as tap, FeatureTap(net, "classifier") as logit_tap:
        for _ in range(2):
            evaluate(net)
            doubled, single = net(X, True), net(X)
            teacher(X)
            evaluate(net)
            first, second = tap.take(2)
            assert first.shape == (4, 5, 4, 5)
            assert second.shape == (2, 5, 4, 5)
            assert_close(net.classifier(first), doubled)
            assert logit_tap.take(3)[1] is single
    (second.sum()).backward()
    assert net.backbone.weight.grad is not None


def test_a_frozen_or_eval_teacher_is_collected_on_demand(net: Net) -> None:
    teacher = copy.deepcopy(net).eval()
    tap = FeatureTap(teacher, "fuse", grad=False)
    evaluate(teacher)
    with torch.no_grad(), tap:
        teacher(X)
    evaluate(teacher)
    (features,) = tap.take(1)
    assert not features.requires_grad
    with torch.no_grad(), tap:
        teacher(X)
    with torch.no_grad(), tap:
        teacher(0 * X)
    (latest,) = tap.take(1)
    assert not torch.equal(latest, features), "opening starts from nothing"


def test_the_wrong_number_of_calls_is_an_error(net: Net) -> None:
    tap = FeatureTap(net, "fuse")
    net(X)
    with pytest.raises(
        RuntimeError, match=r"FeatureTap\('fuse'\): expected 1 calls with gradient .* saw 0; the tap is closed"
    ):
        tap.take(1)
    with tap:
        for _ in range(3):
            net(X)
        with pytest.raises(RuntimeError, match="expected 2 calls with gradient since the last take, saw 3"):
            tap.take(2)
        net(X)
        assert len(tap.take(1)) == 1, "an error empties the tap"
        with pytest.raises(RuntimeError, match=r"expected 1 .* saw 0$"):
            tap.take(1)
        with pytest.raises(ValueError, match="calls: expected an integer"):
            tap.take(0)


def test_a_tap_that_nobody_empties_complains(net: Net) -> None:
    with FeatureTap(net, "fuse"):
        for _ in range(64):
            net(X)
        with pytest.raises(RuntimeError, match="64 calls and no take"):
            net(X)


def test_an_output_overwritten_in_place_is_an_error(net: Net) -> None:
    with FeatureTap(net, "fuse.1") as tap:
        net(X)
        with pytest.raises(RuntimeError, match=r"FeatureTap\('fuse.1'\): a later layer overwrote"):
            tap.take(1)


NEAR = {"fuze": "fuse", "module.fuse": "fuse", "": "backbone", "fuse.7": "fuse"}


@pytest.mark.parametrize(("path", "near"), NEAR.items())
def test_an_unknown_layer_is_named_with_those_like_it(net: Net, path: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"path: expected a layer of Net, such as .*{near}.*, found '{path}'"):
        FeatureTap(net, path)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match=r"module: expected an nn\.Module, found function"):
        FeatureTap(evaluate, "fuse")  # type: ignore[arg-type]


def test_a_layer_without_one_tensor_is_refused(net: Net) -> None:
    with (
        FeatureTap(net, "pair"),
        pytest.raises(TypeError, match=r"FeatureTap\('pair'\): expected .* one tensor, found tuple"),
    ):
        net.pair(X.requires_grad_())


def test_inside_wrappers(net: Net) -> None:
    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    compiled = torch.compile(net, backend="eager")
    for wrapped in (Wrapped(net), compiled, Wrapped(compiled)):
        with FeatureTap(wrapped, "fuse") as tap:
            out = wrapped(X)
            (features,) = tap.take(1)
            assert_close(net.classifier(features), out)


def test_copies_and_files_of_the_network_do_not_feed_the_tap(net: Net) -> None:
    with FeatureTap(net, "fuse") as tap:
        net(X)
        teacher = copy.deepcopy(net)
        torch.save(net, io.BytesIO())
        teacher(X)
        assert len(tap.take(1)) == 1


def test_nothing_stays_behind(net: Net) -> None:
    with FeatureTap(net, "fuse") as tap, tap:
        net(X)
    assert not net.fuse._forward_hooks
    net(X)
    assert len(tap.take(1)) == 1
