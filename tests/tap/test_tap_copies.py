"""Copies of networks with taps."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from tapped import Net, Trainer, X

from brpg_lib import FeatureTap


def test_copies_and_files_of_the_network_do_not_feed_the_tap(net: Net) -> None:
    with FeatureTap(net, "fuse") as tap:
        net(X)
        teacher = copy.deepcopy(net)
        torch.save(net, io.BytesIO())
        teacher(X)
        assert len(tap.take(1)) == 1


def save_and_load(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, save_and_load])
@pytest.mark.parametrize("times", [1, 2])
def test_copied_together_with_its_network_a_tap_belongs_to_the_copy(net: Net, copied: Any, times: int) -> None:
    trainer = Trainer(net)
    trainer.net(X)
    twin = trainer
    for _ in range(times):
        twin = copied(twin)
    with pytest.raises(RuntimeError, match=r"saw 0$"):
        twin.tap.take(1)
    twin.net.backbone.weight.data.mul_(2)
    trainer.net(X)
    own = twin.step()
    first, second = trainer.tap.take(2)
    assert torch.equal(first, second)
    assert not torch.equal(own, first)
    twin.tap.close()
    assert not twin.net.fuse._forward_hooks
    trainer.step()
    with twin.tap:
        twin.step()


@pytest.mark.parametrize("copied", [copy.deepcopy, save_and_load])
def test_a_copied_network_alone_is_without_a_tap(net: Net, copied: Any) -> None:
    with FeatureTap(net, "fuse") as tap:
        twin = copied(net)
        for _ in range(65):  # one that nobody empties would complain
            twin(X)
        with pytest.raises(RuntimeError, match=r"saw 0$"):
            tap.take(1)
        again = copied(twin)
        again(X)
