"""Dropout with draws of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import same, state
from torch import nn

from brpg_lib import ProjectionHead
from brpg_lib.adapters import dropout as dropout_module
from brpg_lib.adapters.dropout import OwnDropout2d, own_dropout

MAPS = (4, 200, 3, 2)


def generators(device: torch.device) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if device.type == "cuda" else ())]


def test_drops_channels_as_dropout2d_does() -> None:
    dropout, x = OwnDropout2d(0.25, seed=0, stream=0), torch.rand(MAPS, requires_grad=True)
    output = dropout(x)
    kept = (output != 0).flatten(2)
    assert torch.equal(kept.any(2), kept.all(2)), "whole channels"
    assert 0.7 < kept.float().mean() < 0.8
    assert torch.allclose(output[output != 0], (x / 0.75)[output != 0])
    output.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad != 0, output != 0)
    assert dropout.eval()(x) is x
    assert OwnDropout2d(0.0, seed=0, stream=0)(x) is x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    first, second = (OwnDropout2d(0.5, seed=0, stream=0) for _ in range(2))
    x = torch.ones(MAPS)
    output = first(x.to(dtype))
    assert output.dtype == dtype
    assert torch.equal(output.float(), second(x)), "the same draws"


def test_the_global_generators_stay(device: torch.device) -> None:
    x, dropout = torch.rand(MAPS, device=device), OwnDropout2d(0.5, seed=0, stream=0)
    before = generators(device)
    dropout(x)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        first, second = dropout(x), dropout(x)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert all(map(torch.equal, before, generators(device)))
    assert not torch.equal(first, second), "each time anew"


def test_seeds_and_streams_differ() -> None:
    x = torch.ones(MAPS)
    outputs = [OwnDropout2d(0.5, seed=seed, stream=stream)(x) for seed in (0, 1) for stream in (0, 1)]
    for index, output in enumerate(outputs):
        assert all(0.4 < (output == other).float().mean() < 0.6 for other in outputs[:index]), "unlike, not opposite"


@pytest.mark.parametrize("mode", ["state", "deepcopy"])
def test_goes_on_where_it_was(mode: str) -> None:
    x, dropout = torch.ones(MAPS), OwnDropout2d(0.5, seed=3, stream=1)
    for _ in range(3):
        dropout(x)
    resumed = copy.deepcopy(dropout)
    if mode == "state":
        resumed = OwnDropout2d(0.5, seed=9, stream=1)  # a resumed training keeps its seed
        resumed.load_state_dict(dropout.state_dict())
    for _ in range(2):
        assert torch.equal(resumed(x), dropout(x))
    assert same(state(resumed), state(dropout))


def test_in_the_place_of_each_dropout() -> None:
    torch.manual_seed(0)
    plain = ProjectionHead(6, 16)
    before = state(plain)
    own = own_dropout(copy.deepcopy(plain), seed=0)
    assert not [layer for layer in own.modules() if isinstance(layer, nn.Dropout2d)]
    assert len([layer for layer in own.modules() if isinstance(layer, OwnDropout2d)]) == 2
    x = torch.rand(2, 6, 5, 5)
    assert torch.equal(own.eval()(x), plain.eval()(x))
    own.load_state_dict(before)  # of a version whose draws were torch's


def test_ranks_draw_each_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    for rank in range(2):
        monkeypatch.setattr(dropout_module, "rank", lambda rank=rank: rank)
        outputs.append(OwnDropout2d(0.5, seed=0, stream=0)(torch.ones(MAPS)))
    assert 0.4 < (outputs[0] == outputs[1]).float().mean() < 0.6
