"""The training loop that all frameworks share: optimizer, schedule, checkpoints, evaluation."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from brpg_lib.examples.data.augment import IGNORE_INDEX
from brpg_lib.examples.data.batches import BatchSource, SegmentationData
from brpg_lib.examples.memory import peak_memory
from brpg_lib.examples.metrics import evaluate
from brpg_lib.examples.networks.base import Segmenter
from brpg_lib.examples.processes import Processes
from brpg_lib.examples.settings import Settings
from brpg_lib.examples.trainers.base import Trainer
from brpg_lib.examples.trainers.build import build
from brpg_lib.examples.trainers.checkpoints import read, restore, states
from brpg_lib.examples.trainers.evaluation import predict, score
from brpg_lib.files import save_atomically

CHECKPOINTS = 10

Progress = Callable[[int], None]


def train(
    settings: Settings, with_head: bool, checkpoint: Path, resume: bool = False, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """Trains one run and evaluates it.

    Batches and draws are functions of the seed and the iteration, so the checkpoint needs no generator states but the
    head's own, which are in its ``state_dict``.

    Args:
        settings: What to train.
        with_head: Whether the prototype head takes part.
        checkpoint: File to write, and to go on from.
        resume: Whether to go on from ``checkpoint`` if it exists.
        progress: Told the number of finished iterations.

    Returns:
        Scores, histories and pictures of the run, as plain types and tensors.
    """
    data = settings.load_data()
    schedule = settings.schedule if with_head else None
    trainer = build(settings, len(data.class_names), settings.iterations, schedule, settings.width)
    if settings.framework != "supervised":
        trainer.supervised_only = settings.supervised_only
    trainer.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = BatchSource(
        data, settings.size, settings.batch_size, settings.seed, trainer.strong_views, colors=trainer.colors
    )
    optimizer = optimizer_of(settings, trainer.model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: poly(i, settings.iterations, settings.rise))
    run: dict[str, Any] = {"iteration": 0, "seconds": 0.0, "history": {}, "phases": [], "peak_memory": 0.0}
    parts = {"trainer": trainer, "optimizer": optimizer, "scheduler": scheduler}
    if resume and checkpoint.is_file():
        run = load(checkpoint, settings, parts)

    device = torch.device(settings.device)
    started = time.perf_counter() - run["seconds"]
    interval = max(1, settings.iterations // CHECKPOINTS)
    left = range(run["iteration"], settings.iterations)
    unread: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for iteration, ready in zip(left, batches.loader(left, loaders(device), device), strict=True):
        trainer.train()
        batch = ready.to(device)
        run["phases"].append("baseline" if trainer.head is None else trainer.head.phase.value)
        loss, losses = trainer.step(batch, iteration)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        trainer.after_step(iteration)
        for name, value in losses.items():
            unread.setdefault(name, []).append((iteration, value.detach()))
        progress(iteration + 1)
        if (iteration + 1) % interval == 0 or iteration + 1 == settings.iterations:
            for name, values in unread.items():
                run["history"].setdefault(name, []).extend([i, value.item()] for i, value in values)
            unread.clear()
            run["iteration"] = iteration + 1
            run["seconds"] = time.perf_counter() - started
            run["peak_memory"] = max(run["peak_memory"], peak_memory(device))
            save(checkpoint, settings, parts, run)
    return run | summarize(trainer, data, batches, settings)


def loaders(device: torch.device) -> int:
    """Processes that prepare batches: beside a GPU, so that it never waits; a CPU has nothing to spare."""
    return min(4, os.cpu_count() or 1) if device.type == "cuda" else 0


def optimizer_of(settings: Settings, model: Segmenter) -> torch.optim.Optimizer:
    """AdamW; a pretrained encoder learns more slowly than what starts from random weights."""
    rate = settings.learning_rate
    new = [p for module in model.new_modules() for p in module.parameters()]
    known = set(map(id, new))
    old = [p for p in model.parameters() if id(p) not in known]
    factor = settings.encoder_rate if settings.pretrained else 1.0
    groups = [{"params": old, "lr": factor * rate}, {"params": new, "lr": rate}]
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def poly(iteration: int, total: int, rise: float) -> float:
    """Linear rise over a share of the iterations, then polynomial decay of power 0.9."""
    return min(1.0, (iteration + 1) / max(1.0, rise * total)) * float(max(0.0, 1 - iteration / total) ** 0.9)


def save(path: Path, settings: Settings, parts: dict[str, Any], run: dict[str, Any]) -> None:
    """Writes a checkpoint; a kill in between leaves the one before."""
    save_atomically({"settings": settings.to_dict(), "parts": states(parts), "run": run}, path)


def load(path: Path, settings: Settings, parts: dict[str, Any]) -> dict[str, Any]:
    """Restores a checkpoint in place.

    Raises:
        ValueError: It was made with other settings.
    """
    saved = read(path, "settings", settings.to_dict())
    restore(parts, saved["parts"])
    run: dict[str, Any] = saved["run"]
    return run


@torch.no_grad()
def summarize(trainer: Trainer, data: SegmentationData, batches: BatchSource, settings: Settings) -> dict[str, Any]:
    """Scores, predictions, and what the representation looks like."""
    trainer.eval()
    device = torch.device(settings.device)
    predictions = [predict(trainer.average, data.test[i][0], device).cpu() for i in range(len(data.test))]
    pairs = ((prediction[None], data.test[i][1][None]) for i, prediction in enumerate(predictions))
    scores = evaluate(pairs, len(data.class_names))
    student = score(trainer.model, data.test, len(data.class_names), Processes(0, 1, device))
    summary: dict[str, Any] = {
        "class_names": list(data.class_names),
        "iou": scores.iou,
        "boundary_iou": scores.boundary_iou,
        "miou": scores.miou,
        "boundary_miou": scores.boundary_miou,
        "student": {"miou": student.miou, "boundary_miou": student.boundary_miou},
        "predictions": [prediction.to(torch.uint8) for prediction in predictions],
    }
    if trainer.head is not None:
        batch = batches(settings.iterations - 1).to(device)
        features = trainer.model(batch.images, features=len(batch.images)).features
        rows, columns = (
            torch.linspace(0, full - 1, low).round().long()
            for full, low in zip(batch.labels.shape[-2:], features.shape[-2:], strict=True)
        )
        labels = batch.labels[:, rows][:, :, columns]
        known = labels != IGNORE_INDEX
        summary["points"] = features.movedim(1, -1)[known].cpu()
        summary["point_classes"] = labels[known].cpu()
        summary["prototypes"] = trainer.head.bank.prototypes.cpu()
        summary["prototype_mask"] = trainer.head.bank.mask.cpu()
    return summary
