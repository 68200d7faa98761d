"""Which outputs a tap keeps, and what it says when the count is off."""

from __future__ import annotations

import copy
import io
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from brpg_lib import FeatureTap
from brpg_lib.layers import WRAPPERS


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


class Checkpointed(Net):
    """Calls backbone and decoder again in the backward pass."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        return checkpoint(super().forward, x, twice, use_reentrant=self.use_reentrant)


def gradients(net: nn.Module, path: str, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Features of two steps, and the gradient of a loss of both features and logits in the second."""
    with FeatureTap(net, path) as tap:
        for _ in range(2):
            net.zero_grad()
            out = net(x)
            (features,) = tap.take(1)
            (out.square().mean() + features.square().sum()).backward()
    found = {bare(name): p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return features.detach(), [found[name] for name in sorted(found)]


def bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


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


class Trainer:
    """Holds a network and its tap."""

    def __init__(self, net: nn.Module) -> None:
        self.tap = FeatureTap(net, "fuse").open()
        self.net = net

    def step(self) -> Tensor:
        out = self.net(X)
        (features,) = self.tap.take(1)
        assert_close(self.net.classifier(features), out)
        return features


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
