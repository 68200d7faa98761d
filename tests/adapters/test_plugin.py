"""What a patched script holds, without a script."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CLASSES, DIM, labeled, same, state, unlabeled
from plugins import SMALL, Network, optimizer_of, plugin, projecting, run, step

from brpg_lib import Phase

# --- Disabled ---------------------------------------------------------------------------------------------------------


def test_disabled_holds_and_does_nothing(tmp_path: Path) -> None:
    network, writer = Network(), Writer()
    optimizer = optimizer_of(network)
    groups = [list(group["params"]) for group in optimizer.param_groups]
    images = torch.randn(1, 3, 4, 4)
    random = torch.get_rng_state()

    brpg = plugin({"enabled": False})
    brpg.tap(network, features="decoder", logits="classifier", teacher=network)
    brpg.add_projection(6, optimizer.param_groups[1], teacher=True)
    with brpg.teacher_pass():
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    for _ in range(100):  # a tap would complain
        network(images)
    brpg.update_teacher(0.5)
    brpg.log(writer, 0)
    brpg.save(tmp_path / "latest.pth", 0)
    brpg.load(tmp_path / "latest.pth", 0)

    assert not brpg.enabled
    assert not [*brpg.parameters(), *brpg.buffers()]
    assert not brpg.state_dict()
    assert [list(group["params"]) for group in optimizer.param_groups] == groups
    assert not writer.written
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.get_rng_state(), random)


# --- Projection -------------------------------------------------------------------------------------------------------


def test_the_projection_joins_the_group() -> None:
    network = Network()
    optimizer = optimizer_of(network)
    first, second = (list(group["params"]) for group in optimizer.param_groups)
    brpg = plugin()
    brpg.add_projection(6, optimizer.param_groups[1], teacher=True)
    assert optimizer.param_groups[0]["params"] == first
    joined = optimizer.param_groups[1]["params"]
    assert [id(p) for p in joined] == [id(p) for p in (*second, *brpg.projection.parameters())]
    optimizer.param_groups[1]["lr"] = 0.5
    before = state(brpg.projection)
    (output,) = brpg.project(torch.randn(2, 6, 4, 4))
    output.square().sum().backward()
    optimizer.step()
    assert not same(before, state(brpg.projection))


def test_the_projection_leaves_the_random_state(device: torch.device) -> None:
    network = Network().to(device)
    group = optimizer_of(network).param_groups[1]
    torch.manual_seed(1)
    brpg = plugin().to(device)
    torch.rand(3, device=device)
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if device.type == "cuda" else ())]
    brpg.add_projection(6, group, teacher=True)
    brpg.project(torch.ones(2, 6, 4, 4, device=device))
    after = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if device.type == "cuda" else ())]
    assert all(map(torch.equal, states, after))
    assert {p.device.type for p in brpg.projection.parameters()} == {device.type}


def test_the_projection_is_reproducible() -> None:
    first = state(projecting().projection)
    assert same(first, state(projecting(seed=7).projection)), "whatever the script's seed"
    assert not same(first, state(projecting({"seed": 1}).projection))


def test_project_splits_one_pass() -> None:
    brpg = projecting().eval()
    maps = [torch.randn(count, 6, 4, 5, requires_grad=True) for count in (2, 3)]
    outputs = brpg.project(*maps)
    assert [output.shape for output in outputs] == [(2, DIM, 4, 5), (3, DIM, 4, 5)]
    assert torch.allclose(outputs[1], brpg.projection(maps[1]), atol=1e-6)
    sum(output.sum() for output in outputs).backward()
    assert all(m.grad is not None and bool(m.grad.any()) for m in maps)


def test_the_teacher_is_no_parameter_and_starts_as_the_student() -> None:
    optimizer = optimizer_of(Network())
    brpg = plugin()
    brpg.add_projection(6, optimizer.param_groups[1], teacher=True)
    student, average = state(brpg.projection), state(brpg.teacher_projection)
    assert same({name: student[name] for name in average}, average)
    assert not any(p.requires_grad for p in brpg.teacher_projection.parameters())
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained.isdisjoint(map(id, brpg.teacher_projection.parameters()))


@pytest.mark.parametrize("ratio", [0.0, 0.75, 0.996, 1.0])
def test_update_teacher_is_a_moving_average(ratio: float) -> None:
    brpg = projecting(teacher=True)
    for _ in range(3):
        brpg.project(torch.randn(2, 6, 4, 4))  # moves the buffers
    with torch.no_grad():
        for parameter in brpg.projection.parameters():
            parameter.add_(torch.randn_like(parameter))
    before, student = state(brpg.teacher_projection), state(brpg.projection)
    brpg.update_teacher(ratio)
    after = brpg.teacher_projection.state_dict()
    assert same(student, state(brpg.projection))
    counters = [name for name, value in after.items() if not value.is_floating_point()]
    assert counters
    for name, value in after.items():
        if name in counters:
            assert torch.equal(value, student[name])
            assert value > 0
        else:
            expected = ratio * before[name] + (1 - ratio) * student[name]
            assert torch.allclose(value, expected, atol=1e-6)
    assert not any(p.requires_grad for p in brpg.teacher_projection.parameters())


@pytest.mark.parametrize("teacher", [False, True])
def test_weak_view(teacher: bool) -> None:
    brpg = projecting(teacher=teacher)
    features, logits = torch.randn(2, 6, 9, 11), torch.randn(2, CLASSES, 9, 11, requires_grad=True)
    valid = torch.ones(2, 17, 21, dtype=torch.bool)
    sampled = []
    for iteration in range(8):
        before = state(brpg.projection)
        found = brpg.weak_view(features, logits, valid)
        assert same(before, state(brpg.projection)), "no pass of the student"
        assert brpg.projection.training
        sampled.append(bool(found))
        if found:
            assert found["weak_features"].shape == (2, DIM, 9, 11)
            assert not found["weak_features"].requires_grad
            assert torch.equal(found["weak_logits"], logits)
            assert not found["weak_logits"].requires_grad
            assert torch.equal(found["weak_valid"], valid)
            source = brpg.teacher_projection if teacher else brpg.projection.eval()
            assert torch.allclose(found["weak_features"], source(features), atol=1e-6)
            brpg.projection.train()
        step(brpg, iteration)
    assert sampled == [False, True, True, True, False, False, False, False]


def test_weak_views_are_sampled_again_when_clustering_again() -> None:
    brpg = projecting({"recluster_every": 0.2})
    maps = torch.randn(2, 6, 9, 11), torch.randn(2, CLASSES, 9, 11)
    sampled = []
    for iteration in range(6):
        sampled.append(bool(brpg.weak_view(*maps)))
        step(brpg, iteration)
    assert sampled == [False, True, True, True, False, True], "the step that makes the first prototypes samples nothing"


# --- Weight 0 ---------------------------------------------------------------------------------------------------------


def test_with_weight_0_no_gradient_reaches_the_script() -> None:
    """Not even one of 0: added, it could change the memory layout of others, and so their last digits."""
    brpg = projecting({"loss_weight": 0.0})
    features = torch.randn(4, 6, 9, 11, requires_grad=True)
    before = state(brpg.projection)
    for iteration in range(6):
        rep_l, rep_u = brpg.project(features[:2], features[2:])
        weak = brpg.weak_view(features[2:], torch.randn(2, CLASSES, 9, 11))
        strong = replace(unlabeled(iteration), features=rep_u, **weak)
        loss = brpg(replace(labeled(iteration), features=rep_l), strong, iteration=iteration)
        loss.backward()
        assert loss == 0
        assert features.grad is None
        assert all(p.grad is not None and not p.grad.any() for p in brpg.projection.parameters())
    assert brpg.head.phase is Phase.LEARN
    assert brpg.head.bank.mask.any(), "all else is as ever"
    assert not same(before, state(brpg.projection)), "its statistics"


def test_with_weight_0_no_gradient_reaches_a_branch_of_the_script_s_own() -> None:
    brpg = plugin(SMALL | {"loss_weight": 0.0})
    for iteration in range(6):
        batches = labeled(iteration), unlabeled(iteration)
        given = [batch.features.requires_grad_() for batch in batches]
        brpg(*batches, iteration=iteration).backward()
        assert all(features.grad is None for features in given)


def test_with_weight_0_the_optimizer_is_the_script_s_alone() -> None:
    optimizer = optimizer_of(Network())
    before = [list(group["params"]) for group in optimizer.param_groups]
    plugin(SMALL | {"loss_weight": 0.0}).add_projection(6, optimizer.param_groups[1], teacher=True)
    assert [list(group["params"]) for group in optimizer.param_groups] == before


@pytest.mark.parametrize(
    ("section", "counts"), [({}, True), ({"loss_weight": 0.0}, False), ({"enabled": False}, False)]
)
def test_what_counts(section: dict[str, Any], counts: bool) -> None:
    assert plugin(section).counts == counts


# --- Taps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "size"), [(1, (7, 8)), (2, (4, 4)), (3, (3, 3))])
def test_taps_hear_the_training_passes_only(stride: int, size: tuple[int, int]) -> None:
    network, teacher = Network(), Network().requires_grad_(False)
    brpg = plugin()
    brpg.tap(network, teacher=teacher, features="decoder", logits="classifier", stride=stride)
    images = [torch.randn(count, 3, 7, 8) for count in (2, 3)]
    for _ in range(2):
        teacher(images[0])  # validation
        with torch.no_grad():
            network(images[0])
        with brpg.teacher_pass():
            expected = teacher(images[1])
        outputs = [network(image) for image in images]
        weak_features, weak_logits = brpg.take_teacher()
        assert weak_features.shape == (3, 6, *size)
        assert not weak_features.requires_grad
        assert not weak_logits.requires_grad
        taken = brpg.take(2)
        for count, (features, logits) in zip((2, 3), taken, strict=True):
            assert features.shape == (count, 6, *size)
            assert logits.shape == (count, CLASSES, *size)
            assert features.requires_grad
        if stride == 1:
            assert torch.equal(weak_logits, expected)
            assert all(torch.equal(logits, output) for (_, logits), output in zip(taken, outputs, strict=True))
    network(images[0])
    with pytest.raises(RuntimeError, match="expected 2 calls"):
        brpg.take(2)


def test_features_that_go_into_the_layer_of_the_logits() -> None:
    network, teacher = Network(), Network().requires_grad_(False)
    brpg = plugin()
    brpg.tap(network, teacher=teacher, logits="classifier")
    images = torch.randn(2, 3, 7, 8)
    logits = network(images)
    network.decoder(images)  # for something else
    with brpg.teacher_pass():
        passes = [teacher(image[None]) for image in images]
    ((features, heard),) = brpg.take(1)
    assert torch.equal(features, network.decoder(images))
    assert torch.equal(heard, logits)
    weak_features, weak_logits = brpg.take_teacher(2)
    assert torch.equal(weak_logits, torch.cat(passes)), "both passes, in one batch"
    assert weak_features.shape == (2, 6, 7, 8)


# --- Steps ------------------------------------------------------------------------------------------------------------


class Writer:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: dict[tuple[str, int], float] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        assert (tag, step) not in self.written
        self.written[tag, step] = value


def test_loss_of_each_phase() -> None:
    brpg = plugin(SMALL)
    losses = [step(brpg, iteration) for iteration in range(8)]
    assert all(loss.requires_grad for loss in losses)
    assert [loss.item() > 0 for loss in losses] == [False] * 4 + [True] * 4
    assert [loss.item() == 0 for loss in losses] == [True] * 4 + [False] * 4


def test_log() -> None:
    brpg, writer = plugin(SMALL), Writer()
    brpg.log(writer, 0)
    assert not writer.written
    for iteration in (0, 1, 2, 3, 4, 5):
        loss = step(brpg, iteration)
        brpg.log(writer, 100 + iteration)
        assert writer.written["brpg/loss", 100 + iteration] == pytest.approx(loss.item())
    tags = [{tag for tag, at in writer.written if at == 100 + iteration} for iteration in range(6)]
    assert all(found == tags[0] for found in tags)
    assert {"brpg/loss", "brpg/prototypes", "brpg/points_labeled"} <= tags[0]
    assert all(tag.startswith("brpg/") for tag in tags[0])
    assert all(type(value) is float for value in writer.written.values())
    assert writer.written["brpg/prototypes", 100] == 0
    assert writer.written["brpg/prototypes", 105] == int(brpg.head.bank.mask.sum()) > 0


def test_phases_are_announced_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    logger = logging.getLogger("script")
    caplog.set_level(logging.INFO, "script")
    brpg = run(plugin(SMALL, logger=logger), range(9))
    heard = [record.getMessage() for record in caplog.records]
    assert [message.split(" from ")[1] for message in heard] == ["iteration 0", "iteration 1", "iteration 4"]
    assert [word in message for word, message in zip(("warm-up", "collect", "learn"), heard, strict=True)] == [True] * 3
    assert f"{int(brpg.head.bank.mask.sum())} prototypes" in heard[2]

    brpg.save(tmp_path / "latest.pth", 0)
    caplog.clear()
    resumed = plugin(SMALL, logger=logger)
    resumed.load(tmp_path / "latest.pth", 0)
    run(resumed, range(9, 12))
    (message,) = [record.getMessage() for record in caplog.records]
    assert "learn" in message
    assert "iteration 9" in message


def test_losses_that_never_go_backward_are_an_error() -> None:
    brpg = plugin()
    for iteration in range(12):
        step(brpg, iteration).backward()
    for iteration in range(12, 22):
        step(brpg, iteration)
    with pytest.raises(RuntimeError, match="brpg: its last 10 losses were in no backward pass"):
        step(brpg, 22)
