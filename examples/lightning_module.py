"""Lightning: the head is a submodule, its state lies in the checkpoint, and its metrics go to the logger."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from brpg_lib import FeatureTap, LabeledBatch, ProjectionHead, PrototypeHead, Schedule, UnlabeledBatch
from brpg_lib.examples.own_trainer import CONFIG, self_training_loss, small_fcn, summary
from brpg_lib.examples.training.data.digits import CLASS_NAMES
from brpg_lib.examples.training.data.loaders import digit_loader

EPOCHS, STEPS = 8, 16


class StopAfter(Callback):  # type: ignore[misc]
    """Interrupts a training at the end of an epoch, as if it had been killed."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so."""
        trainer.should_stop = trainer.current_epoch + 1 >= self.epoch


class Segmenter(LightningModule):  # type: ignore[misc]
    """Network, projection and head."""

    head: PrototypeHead | None

    def __init__(self) -> None:
        super().__init__()
        self.model = small_fcn()
        self.projection = ProjectionHead(in_channels=16, feature_dim=32)
        self.head = None
        self.feature_tap = FeatureTap(self.model, "classifier.2").open()
        self.logit_tap = FeatureTap(self.model, "classifier").open()

    def configure_model(self) -> None:
        """Makes the head: the trainer knows how many steps its optimizer will make, on so many devices."""
        fits = self._trainer is not None and self.trainer.training
        if fits or self.head is None:  # without a training only the sizes matter
            total = int(self.trainer.estimated_stepping_batches) if fits else 1
            schedule = Schedule(warmup=total // 2, collect=total // 4, total=total)
            self.head = PrototypeHead(len(CLASS_NAMES), 32, schedule, CONFIG)

    def on_train_epoch_start(self) -> None:
        """Seeds the dropout, whose random state Lightning does not save."""
        torch.manual_seed(self.current_epoch)

    def training_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor:
        """The loss of one step."""
        assert self.head is not None
        images, labels, weak, strong = batch
        pred, pred_weak, pred_strong = self.model(torch.cat((images, weak, strong)))["out"].chunk(3)
        loss, pseudo, confidence = self_training_loss(pred, labels, pred_weak, pred_strong)

        features, features_weak, features_strong = self.projection(self.feature_tap.take(1)[0]).chunk(3)
        logits, logits_weak, _ = self.logit_tap.take(1)[0].chunk(3)
        out = self.head(
            LabeledBatch(features=features, logits=logits, labels=labels),
            UnlabeledBatch(
                features=features_strong,
                pseudo_labels=pseudo,
                confidence=confidence,
                weak_features=features_weak,
                weak_logits=logits_weak,
            ),
            iteration=self.global_step,  # of the optimizer, which may accumulate gradients
        )
        loss = loss + out.loss

        self.log_dict({"loss": loss} | {f"brpg/{name}": value for name, value in out.metrics.items()})
        if self.trainer.is_last_batch:
            losses = f"loss {loss.item():.3f}  prototype {out.loss.item():.3f}"
            self.print(f"step {self.head.iteration:3d}  {out.phase.value:7s}  {losses}")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """All parameters: the head has none."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def train(folder: Path, stop: int = EPOCHS, resume: bool = False, devices: int = 1) -> PrototypeHead:
    """Trains to the end of epoch ``stop``, from the start or the checkpoint in ``folder``; saves each epoch there."""
    seed_everything(0)
    segmenter = Segmenter()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        max_epochs=EPOCHS,
        logger=CSVLogger(folder),
        log_every_n_steps=4,
        callbacks=[ModelCheckpoint(folder, filename="last", enable_version_counter=False), StopAfter(stop)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(segmenter, digit_loader(STEPS), ckpt_path=folder / "last.ckpt" if resume else None)
    assert segmenter.head is not None
    segmenter.print(summary(segmenter.head))
    return segmenter.head


def main(argv: Sequence[str] | None = None) -> None:
    """Trains for less than a minute."""
    torch.set_num_threads(1)  # more only wait for each other in so small a network
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/lightning"), help="where checkpoints and logs go")
    parser.add_argument("--stop", type=int, default=EPOCHS, metavar="EPOCH", help="interrupt the training after it")
    parser.add_argument("--devices", type=int, default=1, help="number of processes")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    train(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
