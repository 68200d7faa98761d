"""Lightning: a module that knows nothing of prototypes, and the callback that adds them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from brpg_lib import LabeledBatch, ProjectionHead, PrototypeHead, Schedule, UnlabeledBatch
from brpg_lib.examples.lightning_callback import PrototypeCallback
from brpg_lib.examples.own_trainer import CONFIG, self_training_loss, small_fcn, summary
from brpg_lib.examples.training.data.digits import CLASS_NAMES
from brpg_lib.examples.training.data.loaders import digit_loader

EPOCHS, STEPS = 8, 16
Views = tuple[Tensor, Tensor, Tensor, Tensor]
"""Labeled images and their labels, weak and strong views of unlabeled ones."""


class Unchanged(LightningModule):  # type: ignore[misc]
    """FixMatch, as somebody may have written it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_fcn()

    def on_train_epoch_start(self) -> None:
        """Seeds the dropout, whose random state Lightning does not save."""
        torch.manual_seed(self.current_epoch)

    def training_step(self, batch: Views, index: int) -> dict[str, Tensor]:
        """The loss of one step."""
        images, labels, weak, strong = batch
        pred, pred_weak, pred_strong = self.model(torch.cat((images, weak, strong)))["out"].chunk(3)
        return {"loss": self_training_loss(pred, labels, pred_weak, pred_strong)[0]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """All parameters of the network."""
        return torch.optim.AdamW(self.model.parameters(), lr=2e-3)


def batches(batch: Views, features: list[Tensor], logits: list[Tensor]) -> tuple[LabeledBatch, UnlabeledBatch]:
    """What the head takes, from the one forward pass over labeled images, weak and strong views."""
    _, labels, weak, _ = batch
    (labeled, weak_features, strong), (own, weak_logits, _) = features[0].chunk(3), logits[0].chunk(3)
    enlarged = torch.nn.functional.interpolate(weak_logits.detach(), weak.shape[-2:], mode="bilinear")
    confidence, pseudo = enlarged.softmax(1).max(1)
    return LabeledBatch(features=labeled, logits=own, labels=labels), UnlabeledBatch(
        features=strong,
        pseudo_labels=pseudo,
        confidence=confidence,
        weak_features=weak_features,
        weak_logits=weak_logits,
    )


def train(folder: Path, stop: int = EPOCHS, resume: bool = False, devices: int = 1) -> PrototypeHead:
    """Trains to the end of epoch ``stop``, from the start or the checkpoint in ``folder``; saves each epoch there."""
    seed_everything(0)
    schedule = Schedule.from_epochs(warmup=4, collect=2, total=EPOCHS, iters_per_epoch=STEPS // devices)
    head = PrototypeHead(len(CLASS_NAMES), 32, schedule, CONFIG)
    prototypes = PrototypeCallback(head, ProjectionHead(16, 32), batches, ("model.classifier.2", "model.classifier"))
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        max_epochs=stop,
        logger=CSVLogger(folder),
        log_every_n_steps=4,
        callbacks=[prototypes, ModelCheckpoint(folder, filename="last", enable_version_counter=False)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Unchanged(), digit_loader(STEPS), ckpt_path=folder / "last.ckpt" if resume else None)
    print(summary(head))
    return head


def main(argv: Sequence[str] | None = None) -> None:
    """Trains for less than a minute."""
    torch.set_num_threads(1)  # more only wait for each other in so small a network
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/lightning_unchanged"), help="checkpoints and logs")
    parser.add_argument("--stop", type=int, default=EPOCHS, metavar="EPOCH", help="interrupt the training after it")
    parser.add_argument("--devices", type=int, default=1, help="number of processes")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    train(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
