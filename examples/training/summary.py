"""What a finished training came to: scores, predictions, and what its representation looks like."""

from __future__ import annotations

from typing import Any

import torch

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.evaluation import classes_of, score
from brpg_lib.examples.training.loop import Run
from brpg_lib.examples.training.metrics import evaluate


@torch.no_grad()
def summarize(run: Run) -> dict[str, Any]:
    """Plain types and tensors, of one process."""
    trainer, data, device, window = run.trainer.eval(), run.data, run.processes.device, run.recipe.window
    predictions = [classes_of(trainer.average, data.test[i][0], device, window).cpu() for i in range(len(data.test))]
    pairs = ((prediction[None], data.test[i][1][None]) for i, prediction in enumerate(predictions))
    scores = evaluate(pairs, len(data.class_names))
    student = score(trainer.model, data.test, len(data.class_names), run.processes, window)
    record = run.record
    summary: dict[str, Any] = {
        "class_names": list(data.class_names),
        "iou": scores.iou,
        "boundary_iou": scores.boundary_iou,
        "miou": scores.miou,
        "boundary_miou": scores.boundary_miou,
        "student": {"miou": student.miou, "boundary_miou": student.boundary_miou},
        "predictions": [prediction.to(torch.uint8) for prediction in predictions],
        "steps": run.plan.steps,
        "losses": {name: [list(pair) for pair in values] for name, values in record.losses.items()},
        "phases": [list(pair) for pair in record.phases],
        "seconds": record.seconds,
        "peak_memory": record.peak_memory,
    }
    return summary if trainer.head is None else summary | _representation(run)


def _representation(run: Run) -> dict[str, torch.Tensor]:
    """Features of the last batch's labeled pixels, with their classes, and the prototypes."""
    assert run.trainer.head is not None
    batch = run.batches(run.plan.steps - 1).to(run.processes.device)
    features = run.trainer.model(batch.images, features=len(batch.images)).features
    rows, columns = (
        torch.linspace(0, full - 1, low).round().long()
        for full, low in zip(batch.labels.shape[-2:], features.shape[-2:], strict=True)
    )
    labels = batch.labels[:, rows][:, :, columns]
    known = labels != IGNORE_INDEX
    return {
        "points": features.movedim(1, -1)[known].cpu(),
        "point_classes": labels[known].cpu(),
        "prototypes": run.trainer.head.bank.prototypes.cpu(),
        "prototype_mask": run.trainer.head.bank.mask.cpu(),
    }
