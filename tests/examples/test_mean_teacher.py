"""The trainer on one page: phases, accumulation, clipping and scaling, and a resume as if nothing had happened."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from builders import same
from torch import Tensor

from brpg_lib import PrototypeHead
from brpg_lib.output import METRICS

smp = pytest.importorskip("segmentation_models_pytorch")
example: ModuleType = pytest.importorskip("brpg_lib.examples.mean_teacher")

CLASSES, EPOCHS = 11, 10
"""Epochs that are trained, of 20: the later ones learn as these do."""
STOPS = {"warmup": 2, "collect": 5, "learn": 8}
"""Epochs after which the training is interrupted, by the phase it has just been in."""


@pytest.fixture(autouse=True)
def keep_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """One step an epoch, and few test images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "STEPS", 1)
        patch.setattr(example, "TESTED", 4)
        yield


@pytest.fixture(scope="module")
def whole(short: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrototypeHead]:
    """Folder and head of a training without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, example.train(folder, stop=EPOCHS)


def checkpoint(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "last.pt", weights_only=True)
    return found


def differing(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Names of the parts that are not equal bit for bit."""
    assert one.keys() == two.keys()
    return [name for name in one if not same(one[name], two[name])]


def batches(count: int = 2) -> list[list[Tensor]]:
    return list(example.cropped(torch.device("cpu"), example.digit_loader(count, 8)))


def go_on(folder: Path, **options: Any) -> Any:
    training = example.Training(**options)
    training.resume(folder / "last.pt")
    return training


def test_all_phases_and_all_classes(whole: tuple[Path, PrototypeHead]) -> None:
    folder, head = whole
    assert head.iteration == EPOCHS  # steps of the optimizer, though each has two small batches
    assert head.bank.present == [True] * CLASSES
    assert head.phase.value == "learn"
    saved = checkpoint(folder)
    assert saved["epoch"] == EPOCHS
    assert saved["scheduler"]["last_epoch"] == EPOCHS
    assert not same(saved["projection"]["0.weight"], saved["teacher_projection"]["module.0.weight"])


def test_the_log(whole: tuple[Path, PrototypeHead]) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(whole[0]))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "miou", "brpg/loss", *(f"brpg/{name}" for name in METRICS)}
    steps = range(1, EPOCHS + 1)
    for name in ("loss", "miou", "brpg/loss"):
        assert [event.step for event in events.Scalars(name)] == list(steps)
        assert all(math.isfinite(event.value) for event in events.Scalars(name))
    learns = [event.value > 0 for event in events.Scalars("brpg/loss")]
    assert learns == [step > 5 for step in steps]


def test_interrupted_in_each_phase_it_goes_on_exactly(
    whole: tuple[Path, PrototypeHead], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate, started = example.Training.validate, {"epochs": 0}

    def interrupted(training: Any, *arguments: Any) -> float:
        """The epoch after a stop is lost: its steps are done, and it is not saved."""
        started["epochs"] += 1
        if started["epochs"] > limit:
            raise KeyboardInterrupt
        score: float = validate(training, *arguments)
        return score

    for before, (phase, limit) in zip((0, *STOPS.values()), STOPS.items(), strict=False):
        started["epochs"] = before
        with monkeypatch.context() as patch:
            patch.setattr(example.Training, "validate", interrupted)
            with pytest.raises(KeyboardInterrupt):
                example.train(tmp_path, resume=before > 0)
        saved = checkpoint(tmp_path)
        assert saved["epoch"] == limit
        head = go_on(tmp_path).head
        assert head.schedule.phase(limit - 1).value == phase
        assert any(head.bank.present) == (phase == "learn")
        torch.rand(3)
    example.train(tmp_path, stop=EPOCHS, resume=True)
    assert differing(checkpoint(whole[0]), checkpoint(tmp_path)) == []


def test_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        example.main(["--folder", str(tmp_path), "--resume"])
    assert end.value.code == 2
    assert "there is no last.pt in" in capsys.readouterr().err
    example.main(["--folder", str(tmp_path), "--stop", "1", "--no-amp"])
    example.main(["--folder", str(tmp_path), "--stop", "2", "--no-amp", "--resume"])
    lines = re.findall(r"^step +(\d+)  warmup   loss \d\S+  prototype 0.000  mIoU", capsys.readouterr().out, re.M)
    assert lines == ["1", "2"]


def test_all_gradients_are_clipped_and_the_projection_learns(
    whole: tuple[Path, PrototypeHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "MAX_NORM", 1e-3)
    training = go_on(whole[0])
    training.step(batches(), EPOCHS - 1)
    both = [*training.model.parameters(), *training.projection.parameters()]
    norms = torch.stack([parameter.grad.norm() for parameter in both if parameter.grad is not None])
    assert norms.norm().item() == pytest.approx(1e-3, rel=1e-2)
    assert training.projection[0].weight.grad.any()


def test_the_teachers_projection_moves_as_the_teacher_does(whole: tuple[Path, PrototypeHead]) -> None:
    training = go_on(whole[0])
    averages = (training.teacher, training.model), (training.teacher_projection, training.projection)
    before = [[p.clone() for p in average.parameters()] for average, _ in averages]
    training.step(batches(), EPOCHS - 1)
    for old, (average, student) in zip(before, averages, strict=True):
        for was, now, new in zip(old, average.parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(now, was.lerp(new, 0.1))
        assert any(not torch.equal(was, now) for was, now in zip(old, average.parameters(), strict=True))


def test_a_gradient_scaler_changes_nothing() -> None:
    """CUDA has one; here it is seen that gradients are clipped after they are unscaled."""
    weights = []
    for enabled in (False, True):
        torch.manual_seed(0)
        training = example.Training(amp=False)
        training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        training.step(batches(), 0)
        weights.append(training.model.state_dict())
    torch.testing.assert_close(*weights)


def test_another_decoder(monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, PrototypeHead]) -> None:
    """One whose map is smaller than the image: logits are those before they are enlarged."""
    network = smp.FPN("resnet18", encoder_weights=None, classes=CLASSES)
    monkeypatch.setattr(example, "small_unet", lambda: network)
    training = example.Training()
    for iteration in range(7):  # 4 of warm-up, one of collecting
        _, out = training.step(batches(), iteration)
    assert out.phase.value == "learn"
    assert out.loss > 0
