"""Taps in networks that are wrapped, compiled, or partly computed again in the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from tapped import Net, X, evaluate, gradients
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from brpg_lib import FeatureTap


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


class Checkpointed(Net):
    """Calls backbone and decoder again in the backward pass."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        return checkpoint(super().forward, x, twice, use_reentrant=self.use_reentrant)


def test_under_checkpointing_the_repeated_call_does_not_count(net: Net) -> None:
    twin = Checkpointed(use_reentrant=False)
    twin.load_state_dict(net.state_dict())
    features, expected = gradients(net, "fuse", X)
    found, own = gradients(twin, "fuse", X)
    assert_close(found, features)
    assert_close(own, expected)
    assert len(own) == len(list(net.parameters()))


def test_reentrant_checkpointing_is_refused_at_once(net: Net) -> None:
    twin = Checkpointed(use_reentrant=True)
    with FeatureTap(twin, "fuse") as tap:
        with pytest.raises(RuntimeError, match=r"FeatureTap\('fuse'\): .*pass use_reentrant=False, or tap a layer out"):
            twin(X.clone().requires_grad_())
        evaluate(twin)  # no graph is asked for
        with pytest.raises(RuntimeError, match="saw 0, and 3 without"):
            tap.take(1)
    with torch.no_grad(), FeatureTap(twin, "fuse", grad=False) as tap:
        twin(X)
        assert len(tap.take(1)) == 1


def test_a_layer_outside_reentrant_checkpointing_is_fine() -> None:
    torch.manual_seed(0)
    inner = Checkpointed(use_reentrant=True)
    outer = nn.Sequential(nn.Conv2d(3, 3, 1), inner, nn.Conv2d(2, 2, 1))
    for path in ("0", "1", "2"):
        features, own = gradients(outer, path, X)
        assert features.isfinite().all()
        assert len(own) == len(list(outer.parameters()))


def test_checkpoint_wrappers_keep_the_names_of_layers(net: Net) -> None:
    features, expected = gradients(net, "fuse.2", X)
    apply_activation_checkpointing(net, check_fn=lambda part: part is net.fuse)
    assert type(net.fuse).__name__ == "CheckpointWrapper"
    assert_close(gradients(net, "fuse", X), (features, expected))
    assert_close(gradients(net, "fuse.2", X), (features, expected))


def in_ddp(net: Net) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net)


def in_fsdp(net: Net) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    options = {"device_id": torch.device("cpu"), "use_orig_params": True}
    net.fuse = FullyShardedDataParallel(net.fuse, **options)
    return FullyShardedDataParallel(net, **options)


def in_fsdp2(net: Net) -> nn.Module:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no fully_shard yet")
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    fsdp.fully_shard(net.fuse, mesh=mesh)
    return fsdp.fully_shard(net, mesh=mesh)


@pytest.mark.filterwarnings("ignore:FSDP is switching to use")
@pytest.mark.parametrize("wrap", [in_ddp, in_fsdp, in_fsdp2])
@pytest.mark.parametrize("path", ["fuse", "fuse.2", "backbone"])
def test_wrapped_for_several_processes(net: Net, wrap: Any, path: str) -> None:
    features, expected = gradients(net, path, X)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found, own = gradients(wrap(net), path, X)
        assert_close(found, features)
        assert_close([g.full_tensor() if hasattr(g, "full_tensor") else g for g in own], expected)
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(torch.__version__ < "2.5", reason="compiled code of torch 2.4 keeps what hooks it has seen first")
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_code_sees_taps_come_and_go(net: Net, in_place: bool) -> None:
    torch.compiler.reset()
    compiled = net if in_place else torch.compile(net, backend="aot_eager", fullgraph=True)
    if in_place:
        net.compile(backend="aot_eager", fullgraph=True)
    first, second = FeatureTap(compiled, "fuse"), FeatureTap(compiled, "backbone")
    for _ in range(3):
        compiled(X)
        for tap in (first, second):
            with tap:
                out = compiled(X)
                (features,) = tap.take(1)
                assert features.requires_grad
        assert_close(net.classifier(net.fuse(features)), out)
        compiled(X)
        with pytest.raises(RuntimeError, match="saw 0; the tap is closed"):
            first.take(1)


def test_code_compiled_before_the_tap_was_made_is_told_of(net: Net) -> None:
    import torch._dynamo

    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager")
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):  # as it is before there are taps
        compiled(X)
    with FeatureTap(compiled, "fuse") as tap:
        compiled(X)
        with pytest.raises(RuntimeError, match=r"saw 0; .*torch\.compiler\.reset\(\)"):
            tap.take(1)
        torch.compiler.reset()
        compiled(X)
        assert len(tap.take(1)) == 1
