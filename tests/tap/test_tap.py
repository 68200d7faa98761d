"""Which outputs a tap keeps, and what it says when the count is off."""

from __future__ import annotations

import copy

import pytest
import torch
from tapped import Net, X, evaluate
from torch import nn
from torch.testing import assert_close

from brpg_lib import FeatureTap


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
        net.pair(X.clone().requires_grad_())


def test_what_goes_into_a_layer(net: Net) -> None:
    """Though the layer before is called for other things too."""
    with FeatureTap(net, "classifier", input=True) as tap, FeatureTap(net, "fuse") as before:
        net(X)
        net.fuse(net.backbone(X))  # such as an attack
        with torch.no_grad():
            net(X)
        (features,), (output, _) = tap.take(1), before.take(2)
        assert features.requires_grad
        assert torch.equal(features, output)
    teacher = copy.deepcopy(net).requires_grad_(False)
    with FeatureTap(teacher, "classifier", grad=False, input=True) as tap:
        teacher(X)
        (features,) = tap.take(1)
        assert not features.requires_grad
    with FeatureTap(net, "pair", input=True) as tap:
        net.pair(X.clone().requires_grad_())
        tap.take(1)
        with pytest.raises(TypeError, match="expected a layer whose first input is a tensor, found list"):
            net.pair([X])


def test_nothing_stays_behind(net: Net) -> None:
    with FeatureTap(net, "fuse") as tap, tap:
        net(X)
    assert not net.fuse._forward_hooks
    net(X)
    assert len(tap.take(1)) == 1


def test_taps_inside_each_other_and_on_one_layer(net: Net) -> None:
    with FeatureTap(net, "fuse") as outer, FeatureTap(net, "fuse.0") as inner, FeatureTap(net, "fuse") as again:
        net(X)
        (features,) = outer.take(1)
        assert again.take(1)[0] is features
        assert_close(net.fuse[2](net.fuse[1](inner.take(1)[0])), features)
        again.close()
        net(X)
        assert len(outer.take(1)) == 1


def test_a_layer_with_two_names(net: Net) -> None:
    net.alias = net.fuse
    for path in ("alias", "fuse", "alias.2"):
        with FeatureTap(net, path) as tap:
            net(X)
            assert len(tap.take(1)) == 1


def test_a_frozen_teacher_is_told_of(net: Net) -> None:
    teacher = copy.deepcopy(net).requires_grad_(False)
    holder = nn.ModuleDict({"student": net, "teacher": teacher})
    with FeatureTap(holder, "teacher.fuse") as wrong, FeatureTap(holder, "teacher.fuse", grad=False) as tap:
        teacher(X)
        evaluate(teacher)
        with pytest.raises(RuntimeError, match=r"saw 0, and 4 without: .*grad=False is for a teacher"):
            wrong.take(1)
        features = tap.take(4)[0]
        assert_close(teacher.classifier(features), teacher(X))
    with FeatureTap(net, "fuse", grad=False) as tap:
        net(X)
        with pytest.raises(RuntimeError, match=r"saw 0, and 1 with gradient: is the forward pass under"):
            tap.take(1)
