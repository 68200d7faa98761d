"""Hugging Face Accelerate: one process or several, and a resume as if nothing had happened.

Two processes on a machine without GPU (where Accelerate wants to be told that the CPU is meant)::

    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m brpg_lib.examples.accelerate_trainer
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from brpg_lib import FeatureTap, LabeledBatch, ProjectionHead, PrototypeHead, Schedule, UnlabeledBatch
from brpg_lib.examples.own_trainer import CONFIG, self_training_loss, small_fcn, summary
from brpg_lib.examples.training.data.digits import CLASS_NAMES
from brpg_lib.examples.training.data.loaders import digit_loader

EPOCHS, STEPS = 8, 16


def train(folder: Path, stop: int = EPOCHS, resume: bool = False) -> PrototypeHead:
    """Trains to the end of epoch ``stop``, from the start or the checkpoint in ``folder``; saves each epoch there."""
    accelerator = Accelerator()
    set_seed(0)
    model, projection = small_fcn(), ProjectionHead(in_channels=16, feature_dim=32)
    optimizer = torch.optim.AdamW([*model.parameters(), *projection.parameters()], lr=2e-3)
    model, projection, optimizer, loader = accelerator.prepare(model, projection, optimizer, digit_loader(STEPS))

    # After prepare(), which leaves each process its share of the steps. The head is not prepared: nothing in it is
    # trained, and its ranks talk to each other by themselves.
    schedule = Schedule.from_epochs(warmup=4, collect=2, total=EPOCHS, iters_per_epoch=len(loader))
    head = PrototypeHead(len(CLASS_NAMES), 32, schedule, CONFIG).to(accelerator.device)
    accelerator.register_for_checkpointing(head)
    if resume:
        accelerator.load_state(str(folder))

    with FeatureTap(model, "classifier.2") as feature_tap, FeatureTap(model, "classifier") as logit_tap:
        for _ in range(head.iteration // len(loader), stop):
            for images, labels, weak, strong in loader:
                pred, pred_weak, pred_strong = model(torch.cat((images, weak, strong)))["out"].chunk(3)
                loss, pseudo, confidence = self_training_loss(pred, labels, pred_weak, pred_strong)

                features, features_weak, features_strong = projection(feature_tap.take(1)[0]).chunk(3)
                logits, logits_weak, _ = logit_tap.take(1)[0].chunk(3)
                out = head(
                    LabeledBatch(features=features, logits=logits, labels=labels),
                    UnlabeledBatch(
                        features=features_strong,
                        pseudo_labels=pseudo,
                        confidence=confidence,
                        weak_features=features_weak,
                        weak_logits=logits_weak,
                    ),
                )
                loss = loss + out.loss

                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
            losses = f"loss {loss.item():.3f}  prototype {out.loss.item():.3f}"
            accelerator.print(f"step {head.iteration:3d}  {out.phase.value:7s}  {losses}")
            accelerator.save_state(str(folder))
    accelerator.print(summary(head))
    return head


def main(argv: Sequence[str] | None = None) -> None:
    """Trains for less than a minute."""
    torch.set_num_threads(1)  # more only wait for each other in so small a network
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/accelerate"), help="where checkpoints go")
    parser.add_argument("--stop", type=int, default=EPOCHS, metavar="EPOCH", help="interrupt the training after it")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    train(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
