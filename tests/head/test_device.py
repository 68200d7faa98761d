"""The learn step never waits for the device: as a CUDA graph, compiled, and on tensors without values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from builders import (
    fresh,
    gradients,
    head,
    labeled,
    learning_head,
    replace_everywhere,
    same,
    state,
    unlabeled,
)
from fake_cuda import CUDA, DeviceCopyError, NoCopies, fake_cuda, needs_fake_cuda
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from brpg_lib import BRPGConfig, LabeledBatch, PrototypeHead, Schedule, UnlabeledBatch
from brpg_lib.kernels import fused, lloyd
from brpg_lib.notices import LateReader

if lloyd.installed("triton"):
    from brpg_lib.kernels.fused import collecting, comparing, prototypes, reading, scores


@pytest.mark.cuda
def test_cuda_follows_the_cpu() -> None:
    module, other = head(), head().cuda()
    for i in range(9):
        first, second = labeled(10 * i), unlabeled(10 * i)
        out = module(first, second)
        there = other(fresh(first.to(torch.device("cuda"))), fresh(second.to(torch.device("cuda"))))
        assert there.loss.item() == pytest.approx(out.loss.item(), rel=1e-3)
        assert {value.device.type for value in there.metrics.values()} == {"cuda"}
    assert_close(other.bank.prototypes.cpu(), module.bank.prototypes, atol=1e-3, rtol=1e-3)


@pytest.mark.cuda
def test_the_learn_step_does_not_wait_for_the_device() -> None:
    module = learning_head().cuda()
    first, second = on(torch.device("cuda"), labeled(), unlabeled())
    module(first, second)
    assert module.settled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(first, second).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_the_learn_step_as_a_cuda_graph() -> None:
    module, twin = learning_head().cuda(), learning_head().cuda()
    first, second = on(torch.device("cuda"), labeled(), unlabeled())
    for _ in range(3):  # warm-up, on a side stream as torch.cuda.graph asks for
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.autograd.grad(module(first, second).loss, (first.features, second.features))
            twin(first, second)
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(first, second)
        gradient = torch.autograd.grad(out.loss, (first.features, second.features))
    for _ in range(4):
        graph.replay()
        expected = twin(first, second)
        assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-4)
        wanted = torch.autograd.grad(expected.loss, (first.features, second.features))
        for one, two in zip(gradient, wanted, strict=True):
            assert_close(one, two, atol=1e-6, rtol=1e-3)
        assert_close(module.bank.prototypes, twin.bank.prototypes, atol=1e-5, rtol=1e-4)
    assert module.iteration == twin.iteration, "replays count"


def on(device: torch.device, *batches: Any) -> list[Any]:
    return [fresh(batch.to(device)) for batch in batches]


def without_values(config: BRPGConfig, collects: bool) -> tuple[PrototypeHead, LabeledBatch, UnlabeledBatch]:
    """A head, in the collect or the settled learn phase, and batches, all on CUDA; inside :func:`fake_cuda`."""
    module = PrototypeHead(3, 5, Schedule(warmup=0, collect=9 * collects, total=9), config)
    module.to(CUDA)
    if not collects:
        module.timeline._settled_with, module.timeline.complete = module.bank.mask_version, True

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=CUDA)

    labels = empty(2, 17, 21, dtype=torch.uint8)
    first = LabeledBatch(features=empty(2, 5, 9, 11), logits=empty(2, 3, 9, 11), labels=labels)
    second = UnlabeledBatch(
        features=empty(2, 5, 9, 11),
        pseudo_labels=labels.clone(),
        confidence=empty(2, 17, 21),
        weak_features=empty(2, 5, 9, 11),
        weak_logits=empty(2, 3, 9, 11),
        weak_valid=empty(2, 17, 21, dtype=torch.bool),
    )
    return module, first, second


OPTIONS: list[dict[str, Any]] = [
    {},
    {"samples_per_image": 5, "class_balance": 0.5},
    {"class_adaptive": (0.6, 0.9), "fixed_threshold_classes": (1,)},
    {"rare_class_fallback": True, "samples_per_image": 5},
    {"separate_confidence": False, "samples_per_image": 5},
    {"pseudo_label_share": 0.5, "point_balance": 1.0, "misclassified_weight": 2.0},
]
MOST = {True: 800, False: 490}
"""Launches of a collect and of a learn step without its backward pass, whatever the options."""


@needs_fake_cuda
@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_no_decision_of_a_step_depends_on_values(
    options: dict[str, Any], collects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while the queues fill nor while prototypes learn; and what a step launches stays within its budget."""
    monkeypatch.setattr(lloyd, "choose", lambda *_: "torch")  # tried once, with values, before the first of the steps
    with fake_cuda():
        config = BRPGConfig(unlabeled_samples_per_image=9, queue_size=30, **options)
        module, first, second = without_values(config, collects)
        with NoCopies() as guard:
            out = module(first, second)
        assert out.loss.device.type == "cuda"
        assert 100 < guard.total <= MOST[collects], guard.launches
        with pytest.raises(DataDependentOutputException):
            out.loss.item()


LEARNS = {"_scores": 1, "_read": 2, "_compare": 1, "_normalize": 1, "_move": 1, "_health": 1}
COLLECTS = {"_judge": 2, "_slots": 1, "_write": 2, "_advance": 1, "_health": 1}


@needs_fake_cuda
@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("options", [options for options in OPTIONS if "rare_class_fallback" not in options])
def test_launches_of_a_step_with_its_kernels(
    options: dict[str, Any], collects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU is asked for in a step: kernels of our own, which have no values to work on here, and the rest."""
    if not lloyd.installed("triton"):
        pytest.skip("needs triton")
    monkeypatch.setattr(lloyd, "choose", lambda *_: "torch")
    own: Counter[str] = Counter()

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert max(grid) > 0
            return lambda *arguments, **sizes: own.update([self.name])

    for module, names in (
        (scores, ("_scores", "_race")),
        (reading, ("_read", "_spread")),
        (comparing, ("_compare", "_differentiate")),
        (prototypes, ("_normalize", "_move", "_health")),
        (collecting, ("_judge", "_slots", "_write", "_advance")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Kernel(name))
    monkeypatch.setattr(torch.cuda, "device_of", lambda values: nullcontext())
    monkeypatch.setattr(fused, "kernels_for", lambda *_: fused.load())
    with fake_cuda():
        module, first, second = without_values(BRPGConfig(unlabeled_samples_per_image=9, **options), collects)
        for batch in (first, second):
            batch.features.requires_grad_()
        with NoCopies() as guard:
            module(first, second)
    caps = own.pop("_race", 0)
    assert caps == (0 if not collects or "samples_per_image" not in options else 2 - ("separate_confidence" in options))
    assert dict(own) == (COLLECTS if collects else LEARNS)
    most = 60 if options.get("pseudo_label_share") is None else 95
    if collects:
        most = 80 if options.keys() <= {"pseudo_label_share", "point_balance", "misclassified_weight"} else 115
    assert guard.total + own.total() <= most, guard.launches


@needs_fake_cuda
@pytest.mark.parametrize(
    "planted",
    [
        lambda values: values.sum().item(),
        lambda values: values[values > 0],
        lambda values: values.nonzero(),
        lambda values: bool((values > 0).any()),
        lambda values: torch.bincount(values.long()),
        lambda values: values + torch.ones(values.shape).to(values.device),
        lambda values: values.to("cpu"),
    ],
)
def test_what_waits_for_the_device_is_noticed(planted: Callable[[Tensor], object]) -> None:
    with fake_cuda():
        module, first, second = without_values(BRPGConfig(queue_size=30), collects=False)
        module.register_forward_hook(lambda *_: planted(module.bank.prototypes.flatten()))
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException, DeviceCopyError)), NoCopies():
            module(first, second)


@pytest.mark.parametrize("options", OPTIONS)
def test_lists_of_a_fixed_length_fill_the_same_queues(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what lists do that are as long as they need to be; also where a queue overflows."""
    found = []
    for fixed in (False, True):
        if fixed:
            replace_everywhere(monkeypatch, "on_host", lambda device: False)
        module = head(collect=6, **({"queue_size": 20} | options))
        for i in range(6):
            module(labeled(10 * i), unlabeled(10 * i))
        found.append(state(module))
    assert found[0]["queue.rows"].sum() > 0
    assert same(*found)


class NoFloat64(TorchDispatchMode):
    """A device without float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert not any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in tree_leaves(out)), func
        return out


@pytest.mark.parametrize("options", [*OPTIONS, {"dispersion": "l2"}, {"centroid": "confidence"}])
def test_devices_without_float64(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first step to a checkpoint, with results like those that float64 gives."""
    replace_everywhere(monkeypatch, "on_host", lambda device: False)
    twin, module = (head(**options, backend="torch") for _ in range(2))
    for i in range(8):
        twin(labeled(10 * i), unlabeled(10 * i))
    replace_everywhere(monkeypatch, "widest", lambda device: torch.float32)
    batches = [(labeled(10 * i), unlabeled(10 * i)) for i in range(8)]
    with NoFloat64():
        for pair in batches:
            out = module(*pair)
        out.loss.item()
        repr(module)
        if torch.__version__ >= "2.5":  # before, tensors of such a mode could not become a subclass
            module.state_dict()
    assert_close(module.bank.prototypes, twin.bank.prototypes, atol=1e-4, rtol=1e-4)


def test_settled_once_every_class_has_prototypes(device: torch.device) -> None:
    module = head().to(device)
    for i in range(7):
        assert module.settled == (i > 4)
        assert module.iteration == i
        module(*on(device, labeled(10 * i), unlabeled(10 * i)))
    module.bank.mask[0] = False
    assert not module.settled
    assert module.iteration == 7
    module(*on(device, labeled(70), unlabeled(70)))
    assert module.iteration == 8
    again = head(recluster_every=3).to(device)
    for i in range(7):
        again(*on(device, labeled(10 * i), unlabeled(10 * i)))
    assert not again.settled


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_learn_step_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    module, twin = learning_head().to(device), learning_head().to(device)
    for part in (module, twin):
        part(*on(device, labeled(50), unlabeled(50)))
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    for i in range(6, 26):
        batches, others = (on(device, labeled(10 * i), unlabeled(10 * i)) for _ in range(2))
        with torch._dynamo.config.patch(error_on_recompile=i > 6):  # once is enough, whatever the values
            out = compiled(*batches)
        expected = twin(*others)
        assert_close(out.loss, expected.loss, atol=1e-5, rtol=1e-5)
        for one, two in zip(gradients(out, *batches), gradients(expected, *others), strict=True):
            assert_close(one, two, atol=1e-6, rtol=1e-4)
        assert_close(module.bank.prototypes, twin.bank.prototypes, atol=1e-5, rtol=1e-5)
        assert out.metrics.keys() == expected.metrics.keys()
        for name, value in expected.metrics.items():
            assert_close(out.metrics[name], value, atol=1e-5, rtol=1e-5)
        assert module.iteration == twin.iteration == i + 1
    torch._dynamo.reset()


def test_compiled_from_the_first_step() -> None:
    """Without fullgraph: the phases before the learn step run as they are."""
    module, twin = head(), head()
    compiled = torch.compile(module, backend="aot_eager")
    for i in range(8):
        batches, others = (on(torch.device("cpu"), labeled(10 * i), unlabeled(10 * i)) for _ in range(2))
        out, expected = compiled(*batches), twin(*others)
        assert out.phase is expected.phase
        assert_close(out.loss, expected.loss)
    assert same(state(module), state(twin))
    torch._dynamo.reset()


def test_deterministic_algorithms_repeat_everything(device: torch.device) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        losses = []
        for _ in range(2):
            module = head().to(device)
            for i in range(8):
                batches = on(device, labeled(10 * i), unlabeled(10 * i))
                out = module(*batches)
                gradient = gradients(out, *batches)
            losses.append((out.loss, *gradient, module.bank.prototypes))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, two) for one, two in zip(*losses, strict=True))


@pytest.mark.cuda
def test_what_a_head_has_to_say_is_read_later_without_waiting(recwarn: pytest.WarningsRecorder) -> None:
    module, device = learning_head().cuda(), torch.device("cuda")
    module.bank.prototypes[:, :, 1:] = module.bank.prototypes[:, :, :1]  # collapsed
    batches = on(device, labeled(), unlabeled())
    module(*batches)
    torch.cuda.synchronize()
    recwarn.clear()
    for _ in range(2 * LateReader.EVERY):
        module(*batches)
    assert any("have collapsed" in str(warning.message) for warning in recwarn.list)
