"""The tensors of every example meet on the device, and its head's learn step waits for none: seen without a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import NoCopies, fake_cuda, needs_fake_cuda
from torch import Tensor

from brpg_lib import HeadOutput, PrototypeHead
from brpg_lib.examples.training.data.digits import CLASS_NAMES

pytestmark = needs_fake_cuda


class LearnStepDone(Exception):  # noqa: N818 (it is what is expected)
    """The head's learn step has run, on the device alone."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A fake one, where the first call of a head is a learn step, and the last thing that happens."""
    original = PrototypeHead.forward

    def forward(head: PrototypeHead, *batches: Any, **options: Any) -> HeadOutput:
        head.timeline._settled_with = head.bank.mask_version
        with NoCopies() as guard:
            out = original(head, *batches, **options)
        assert guard.total > 100
        assert {value.device.type for value in (out.loss, *out.metrics.values())} == {"cuda"}
        assert out.loss.requires_grad
        raise LearnStepDone

    monkeypatch.setattr(PrototypeHead, "forward", forward)
    with fake_cuda() as found:
        yield found


def example(name: str, needs: str = "torch") -> Any:
    pytest.importorskip(needs)
    return importlib.import_module(f"brpg_lib.examples.{name}")


def views(*_: Any) -> list[list[Tensor]]:
    """A batch as the loader gives it, on the host."""
    image, label = torch.empty(8, 3, 33, 33), torch.empty(8, 33, 33, dtype=torch.int64)
    return [[image, label, image.clone(), image.clone()]]


def on(device: torch.device) -> list[Tensor]:
    return [part.to(device) for part in views()[0]]


@pytest.mark.parametrize(
    ("name", "needs"),
    [("own_trainer", "torchvision"), ("segformer", "transformers"), ("smp_unet", "segmentation_models_pytorch")],
)
def test_plain_loops(name: str, needs: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example(name, needs)
    monkeypatch.setattr(module, "digit_loader", views)
    if name == "segformer":  # tensors without values cannot be copied with all that holds them
        monkeypatch.setattr(module, "AveragedModel", lambda network, **_: network.requires_grad_(True))
    with pytest.raises(LearnStepDone):
        module.train(2, device)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available", "ignore:.*torch.cuda.amp.GradScaler is enabled")
def test_mean_teacher(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("mean_teacher", "segmentation_models_pytorch")
    # Tensors without values cannot be copied with all that holds them.
    monkeypatch.setattr(module, "AveragedModel", lambda network, **_: network.requires_grad_(True))
    monkeypatch.setattr(module, "cutmix_boxes", lambda count, size: torch.zeros(count, size, size, dtype=torch.bool))
    training = module.Training(device)
    with pytest.raises(LearnStepDone):
        training.step(module.cropped(device, views()), training.head.schedule.total - 1)


def test_quickstart(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("quickstart", "sklearn")
    scenes = [(torch.empty(3, 33, 33, dtype=torch.uint8), torch.empty(33, 33, dtype=torch.int64))] * 64
    monkeypatch.setattr(module, "DigitScenes", lambda *_: scenes)
    with pytest.raises(LearnStepDone):
        module.main(device)


def test_accelerate(device: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = example("accelerate_trainer", "accelerate")

    def prepare(*parts: Any) -> list[Any]:
        model, projection, optimizer, _ = parts
        return [model.to(device), projection.to(device), optimizer, [on(device)]]

    accelerator = SimpleNamespace(prepare=prepare, device=device, register_for_checkpointing=lambda _: None)
    monkeypatch.setattr(module, "Accelerator", lambda: accelerator)
    monkeypatch.setattr(module, "digit_loader", views)
    with pytest.raises(LearnStepDone):
        module.train(tmp_path)


def test_lightning_module(device: torch.device) -> None:
    segmenter = example("lightning_module", "lightning").Segmenter()
    segmenter.configure_model()
    segmenter.to(device)
    with pytest.raises(LearnStepDone):
        segmenter.training_step(on(device), 0)


def test_lightning_callback(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    module = example("lightning_unchanged", "lightning")
    head = PrototypeHead(len(CLASS_NAMES), 32, module.Schedule(warmup=1, collect=1, total=9), module.CONFIG)
    layers = ("model.classifier.2", "model.classifier")
    callback = module.PrototypeCallback(head, module.ProjectionHead(16, 32), module.batches, layers)
    network = module.Unchanged()
    callback.setup(None, network, "fit")
    network.to(device)
    callback.on_fit_start(SimpleNamespace(optimizers=[network.configure_optimizers()]), network)
    with pytest.raises(LearnStepDone):
        network.training_step(on(device), 0)


def test_transformers_trainer(device: torch.device) -> None:
    module = example("hf_trainer", "transformers")
    model = module.Segmenter().to(device)
    head = PrototypeHead(len(CLASS_NAMES), 32, module.Schedule(warmup=1, collect=1, total=9), module.CONFIG).to(device)
    trainer = SimpleNamespace(model=model, head=head, tap=None)
    inputs = dict(zip(("pixel_values", "labels", "weak", "strong"), on(device), strict=True))
    with pytest.raises(LearnStepDone):
        module.PrototypeTrainer.compute_loss(trainer, model, inputs)


def test_a_head_that_stays_on_the_host_is_found(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("own_trainer", "torchvision")
    monkeypatch.setattr(module, "digit_loader", views)
    monkeypatch.setattr(PrototypeHead, "to", lambda head, _: head)
    with pytest.raises(ValueError, match=r"features: .* on cpu"):
        module.train(2, device)
