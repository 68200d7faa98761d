"""What a patched script holds, without a script."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CLASSES, DIM, labeled, same, state, unlabeled
from torch import Tensor, nn

from brpg_lib import BRPGConfig, Phase, Schedule
from brpg_lib.adapters.plugin import Plugin

EPOCHS, ITERATIONS = 20, 10
SMALL = {"queue_size": 200, "grid_size": 6, "unlabeled_samples_per_image": 40, "warmup": 0.1, "collect": 0.3}
"""A section for the batches of `builders`: 1 step of warm-up, 3 of collecting."""


def plugin(section: Any = None, *, dataset: str = "pascal", feature_dim: int = DIM, **options: Any) -> Plugin:
    return Plugin(
        section,
        dataset=dataset,
        num_classes=CLASSES,
        feature_dim=feature_dim,
        epochs=EPOCHS,
        iters_per_epoch=ITERATIONS,
        **options,
    )


def step(brpg: Plugin, iteration: int) -> Tensor:
    return brpg(labeled(10 * iteration), unlabeled(10 * iteration), iteration=iteration)


def run(brpg: Plugin, iterations: range) -> Plugin:
    for iteration in iterations:
        step(brpg, iteration)
    return brpg


class Network(nn.Module):
    """Decoder features of 6 channels, and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Conv2d(3, 6, 3, padding=1)
        self.classifier = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.decoder(x))


def optimizer_of(network: Network) -> torch.optim.Optimizer:
    groups = [{"params": [*network.decoder.parameters()], "lr": 0.1}, {"params": [*network.classifier.parameters()]}]
    return torch.optim.SGD(groups, lr=0.2, momentum=0.9)


# --- The section ------------------------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "num_prototypes": [3, 1],
    "confidence_threshold": 0.9,
    "confidence_floor": 0.4,
    "class_adaptive": [0.2, 0.9],
    "adaptive_momentum": 0.5,
    "fixed_threshold_classes": [0, 2],
    "samples_per_image": 17,
    "class_balance": 0.5,
    "queue_size": 123,
    "separate_confidence": False,
    "rare_class_fallback": True,
    "split_fraction": 0.5,
    "split_increment": 2,
    "dispersion": "l2",
    "centroid": "confidence",
    "grid_size": 7,
    "unlabeled_samples_per_image": 11,
    "temperature": 0.5,
    "momentum": 0.5,
    "misclassified_weight": 2.5,
    "point_balance": 0.5,
    "pseudo_label_share": 0.5,
    "restarts": 3,
    "max_iterations": 7,
    "backend": "torch",
    "labeled_weight": 0.5,
    "unlabeled_weight": 0.75,
    "loss_weight": 0.25,
    "align_corners": False,
    "ignore_index": 99,
}
EPOCH_COUNTS = {"warmup": 2.5, "collect": 3, "total": 40, "ramp_start": 7, "recluster_every": 1.5, "max_collect": 4}
SCHEDULE: dict[str, Any] = EPOCH_COUNTS | {
    "pseudo_threshold_range": [0.1, 0.2],
    "extrapolate_threshold": True,
    "min_rows": 5,
}
OWN: dict[str, Any] = {
    "enabled": True,
    "feature_dim": 9,
    "seed": 5,
    "queue_dtype": "bfloat16",
    "queue_device": "cpu",
}


def test_all_keys_are_tested() -> None:
    assert CONFIG.keys() == {field.name for field in dataclasses.fields(BRPGConfig)}
    assert SCHEDULE.keys() == inspect.signature(Schedule.from_epochs).parameters.keys() - {"iters_per_epoch"}


def as_given(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("key", CONFIG)
def test_hyper_parameters(key: str) -> None:
    default = plugin().head.config
    config = plugin({key: CONFIG[key]}).head.config
    assert getattr(default, key) != as_given(CONFIG[key])
    assert config == dataclasses.replace(default, **{key: CONFIG[key]})


@pytest.mark.parametrize("key", SCHEDULE)
def test_lengths_count_epochs(key: str) -> None:
    default = plugin().head.schedule
    schedule = plugin({key: SCHEDULE[key]}).head.schedule
    expected = round(ITERATIONS * SCHEDULE[key]) if key in EPOCH_COUNTS else as_given(SCHEDULE[key])
    assert getattr(default, key) != expected
    ramp = {"ramp_start": None} if key == "total" else {}  # a share of the total
    assert schedule == dataclasses.replace(default, **{**ramp, key: expected})


def test_all_keys_at_once() -> None:
    brpg = plugin(CONFIG | SCHEDULE | OWN | {"separate_confidence": True})  # the fallback needs the groups
    assert brpg.head.feature_dim == OWN["feature_dim"]
    assert brpg.head.seed == OWN["seed"]
    assert brpg.head.queue.dtype == torch.bfloat16
    assert brpg.enabled


@pytest.mark.parametrize("section", [None, {}, {"enabled": True}])
@pytest.mark.parametrize(
    ("dataset", "config", "epochs"),
    [
        ("pascal", BRPGConfig.pascal(), 1),
        ("pascal_semi", BRPGConfig.pascal(), 1),
        ("cityscapes", BRPGConfig.cityscapes(), 3),
        ("cityscapes_semi", BRPGConfig.cityscapes(), 3),
        ("coco", BRPGConfig.coco(), 1),
        ("another", BRPGConfig.pascal(), 1),
    ],
)
def test_presets(section: Any, dataset: str, config: BRPGConfig, epochs: int) -> None:
    head = plugin(section, dataset=dataset).head
    lengths = {"warmup": epochs, "collect": epochs, "total": EPOCHS}
    assert head.config == config
    assert head.schedule == Schedule.from_epochs(**lengths, iters_per_epoch=ITERATIONS)
    assert (head.num_classes, head.feature_dim, head.seed) == (CLASSES, DIM, 0)
    assert head.queue.dtype == torch.float32


def test_the_section_may_name_another_preset() -> None:
    head = plugin({"preset": "small_data", "loss_weight": 0.2}, dataset="cityscapes").head
    assert head.config == BRPGConfig.small_data(loss_weight=0.2)
    assert head.schedule == plugin(dataset="cityscapes").head.schedule, "the lengths are of the dataset"
    assert plugin({"preset": "coco"}).head.config == BRPGConfig.coco()


def test_the_section_is_stronger_than_preset_and_script() -> None:
    section = {"rare_class_fallback": False, "ignore_index": 200, "feature_dim": 8, "total": 30}
    head = plugin(section, dataset="coco", ignore_index=254).head
    assert not head.config.rare_class_fallback
    assert (head.config.ignore_index, head.feature_dim, head.schedule.total) == (200, 8, 30 * ITERATIONS)
    assert plugin(dataset="coco", ignore_index=254).head.config.ignore_index == 254


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    ("key", "hint"), [("queue_sise", "queue_size"), ("warm_up", "warmup"), ("qqq", None), (7, None), ("Seed", "seed")]
)
def test_unknown_keys_are_refused(key: Any, hint: str | None, enabled: bool) -> None:
    with pytest.raises(ValueError, match=rf"^brpg\.{key}: expected one of ") as refusal:
        plugin({"enabled": enabled, key: 1})
    message = str(refusal.value)
    assert "queue_size, " in message
    assert message.endswith(f"(did you mean {hint}?)") == (hint is not None)


NUMBERS = sorted(
    key
    for key, value in (CONFIG | SCHEDULE | OWN).items()
    if isinstance(value, int | float) and not isinstance(value, bool)
)
WRONG: list[tuple[str, Any]] = [
    *((key, value) for key in NUMBERS for value in ("1", True, [1], {"a": 1}, float("nan"))),
    *((key, value) for key in ("num_prototypes", "pseudo_threshold_range") for value in (1, "12", [1], None, ["a", 1])),
    *(("class_adaptive", value) for value in (0.5, [0.5], ["a", 0.9], [0.5, "b"], "ab")),
    *(("fixed_threshold_classes", value) for value in (1, "1", ["a"], [-1], None)),
    *((key, value) for key in ("separate_confidence", "align_corners", "enabled") for value in (0, "no", None, [True])),
    *((key, value) for key in ("dispersion", "centroid") for value in ("L1", None, 1, ["mean"])),
    *(("preset", value) for value in ("voc", "to_dict", None, 1, ["coco"])),
    *(("queue_dtype", value) for value in ("float", "float64", None, 32, ["float32"], {})),
    *(("queue_device", value) for value in ("gpu", 0, "cuda:1", ["cpu"])),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_values_are_named(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^brpg\.{key}(\[\d\])?: expected .+, found "):
        plugin({key: value})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"min_rows": 10**6}, r"brpg\.min_rows: expected at most the \d+ rows of a queue, found 1000000"),
        ({"fixed_threshold_classes": [99]}, r"brpg\.fixed_threshold_classes: .*, found 99"),
        ({"warmup": EPOCHS}, rf"brpg\.total: .*\(in iterations, {ITERATIONS} per epoch\)"),
    ],
)
def test_what_does_not_fit_is_named_by_its_key(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        plugin(section)


@pytest.mark.parametrize("section", [[], "off", False, 1, [("enabled", False)]])
def test_a_section_is_a_mapping(section: Any) -> None:
    with pytest.raises(ValueError, match=r"^brpg: expected a section"):
        plugin(section)


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


def projecting(section: dict[str, Any] | None = None, *, teacher: bool = False, seed: int = 0) -> Plugin:
    torch.manual_seed(seed)
    brpg = plugin(SMALL | (section or {}))
    brpg.add_projection(6, optimizer_of(Network()).param_groups[1], teacher=teacher)
    return brpg


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
    assert same(state(brpg.projection), state(brpg.teacher_projection))
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
    assert sampled == [False, True, True, True, True, True]


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


# --- State files ------------------------------------------------------------------------------------------------------


def trained(steps: int, **options: Any) -> Plugin:
    """A plug-in with a projection and a teacher, some way on."""
    brpg = projecting(teacher=True, **options)
    for _ in range(steps):
        brpg.project(torch.randn(2, 6, 4, 4))
        brpg.update_teacher(0.5)
    return run(brpg, range(steps))


def loaded(checkpoint: Path, epoch: int, **options: Any) -> dict[str, Any]:
    brpg = projecting(teacher=True, seed=99, **options)
    brpg.load(checkpoint, epoch)
    return state(brpg)


@pytest.fixture
def latest(tmp_path: Path) -> Path:
    return tmp_path / "exp" / "latest.pth"


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 6])
def test_save_and_load(latest: Path, steps: int) -> None:
    brpg = trained(steps)
    brpg.save(str(latest), 5)
    assert same(loaded(latest, 5), state(brpg))
    assert [file.name for file in latest.parent.iterdir()] == ["latest.brpg.pth"]
    torch.load(latest.with_name("latest.brpg.pth"), weights_only=True)
    resumed = projecting(teacher=True)
    resumed.load(str(latest), 5)
    assert torch.equal(step(resumed, steps), step(brpg, steps))
    assert same(state(resumed), state(brpg))


def test_the_state_before_is_kept(latest: Path) -> None:
    brpg, states = trained(0), []
    for epoch in range(4):
        run(brpg, range(2 * epoch, 2 * epoch + 2))
        brpg.save(latest, epoch)
        states.append(state(brpg))
    assert same(loaded(latest, 3), states[3])
    assert same(loaded(latest, 2), states[2]), "killed before the script wrote its checkpoint of epoch 3"
    assert {file.name for file in latest.parent.iterdir()} == {"latest.brpg.pth", "latest.brpg.previous.pth"}
    for epoch in (0, 1, 4):
        with pytest.raises(ValueError, match=rf"of epoch {epoch}, found .* of epoch 3, .* of epoch 2;"):
            loaded(latest, epoch)


@pytest.mark.parametrize("epoch", [np.int64(7), 7, torch.tensor(7)])
def test_epochs_of_any_integer_type(latest: Path, epoch: Any) -> None:
    brpg = trained(1)
    brpg.save(latest, epoch)
    assert same(loaded(latest, 7), state(brpg))
    assert same(loaded(latest, epoch), state(brpg))


def test_best_and_latest_are_apart(latest: Path) -> None:
    best = latest.with_name("best.pth")
    first, second = trained(2), trained(5)
    first.save(latest, 0)
    first.save(best, 0)
    second.save(latest, 1)
    assert same(loaded(best, 0), state(first))
    assert same(loaded(latest, 1), state(second))


@pytest.mark.parametrize("writes", range(4))
def test_a_kill_at_any_moment_of_saving_loses_nothing(
    latest: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script still has its checkpoint of epoch 1."""
    brpg = trained(1)
    for epoch in (0, 1):
        brpg.save(latest, epoch)
    expected = state(brpg)
    run(brpg, range(1, 5))
    done = 0

    def counted(function: Any) -> Any:
        def act(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done == writes:
                raise KeyboardInterrupt
            done += 1
            return function(*args, **kwargs)

        return act

    monkeypatch.setattr(torch, "save", counted(torch.save))
    monkeypatch.setattr(os, "replace", counted(os.replace))
    try:
        brpg.save(latest, 2)
    except KeyboardInterrupt:
        assert done == writes
    monkeypatch.undo()
    assert same(loaded(latest, 1), expected)


def test_a_partial_write_is_no_state(latest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brpg = trained(1)
    brpg.save(latest, 0)
    expected = state(brpg)
    run(brpg, range(1, 5))

    def partial(value: Any, file: Any) -> None:
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", partial)
    with pytest.raises(OSError, match="No space left"):
        brpg.save(latest, 1)
    monkeypatch.undo()
    assert same(loaded(latest, 0), expected)


def test_killed_twice_before_the_script_wrote(latest: Path) -> None:
    brpg = trained(1)
    brpg.save(latest, 0)
    expected = state(brpg)
    for _ in range(2):  # resumed from epoch 0, killed after saving the state of epoch 1, before the checkpoint
        brpg = projecting(teacher=True)
        brpg.load(latest, 0)
        assert same(state(brpg), expected)
        run(brpg, range(1, 3)).save(latest, 1)
    assert same(loaded(latest, 0), expected)


def test_no_state_at_all(latest: Path) -> None:
    with pytest.raises(ValueError, match=r"expected .* of epoch 3, found none; .*enabled: false"):
        loaded(latest, 3)


def test_disabled_refuses_a_checkpoint_with_a_head(latest: Path) -> None:
    trained(1).save(latest, 0)
    with pytest.raises(
        ValueError, match=r"^brpg\.enabled: expected true, found false, but latest\.pth was trained with"
    ):
        plugin({"enabled": False}).load(latest, 0)
    plugin({"enabled": False}).load(latest.with_name("another.pth"), 0)
    latest.with_name("latest.brpg.pth").rename(latest.with_name("latest.brpg.previous.pth"))
    with pytest.raises(ValueError, match=r"^brpg\.enabled"):
        plugin({"enabled": False}).load(latest, 0)


@pytest.mark.parametrize("section", [{"temperature": 0.5}, {"queue_size": 50}, {"feature_dim": 7}])
def test_another_head_is_refused(latest: Path, section: dict[str, Any]) -> None:
    """By a ValueError that names the setting."""
    trained(5).save(latest, 0)
    (name,) = section
    brpg = projecting(section, teacher=True)
    before = state(brpg)
    with pytest.raises(ValueError, match=rf"\b{name} is .*, here {section[name]}"):
        brpg.load(latest, 0)
    assert same(state(brpg), before)


def test_a_resumed_head_goes_on_in_its_phase(latest: Path) -> None:
    trained(3).save(latest, 0)
    brpg = projecting(teacher=True)
    brpg.load(latest, 0)
    assert brpg.head.phase is Phase.COLLECT
    assert brpg.weak_view(torch.randn(2, 6, 4, 4), torch.randn(2, CLASSES, 4, 4))


def test_a_damaged_state_gives_way_to_the_one_before(latest: Path) -> None:
    brpg = plugin()
    for epoch in range(2):
        step(brpg, epoch)
        brpg.save(latest, epoch)
    current = latest.with_suffix(".brpg.pth")
    for damage in (b"", b"no state", current.read_bytes()[:100]):
        current.write_bytes(damage)
        plugin().load(latest, 0)
        with pytest.raises(ValueError, match=r"of epoch 1, found .* of epoch None, .* of epoch 0"):
            plugin().load(latest, 1)
    brpg.save(latest, 1)
    plugin().load(latest, 1)


def test_losses_that_never_go_backward_are_an_error() -> None:
    brpg = plugin()
    for iteration in range(12):
        step(brpg, iteration).backward()
    for iteration in range(12, 22):
        step(brpg, iteration)
    with pytest.raises(RuntimeError, match="brpg: its last 10 losses were in no backward pass"):
        step(brpg, 22)
