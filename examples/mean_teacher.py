"""The usual semi-supervised trainer on one page, to copy from; ``# BRPG`` marks what the prototypes add to it.

A mean teacher with CutMix, mixed precision, gradient accumulation and clipping, validation, checkpoints and a log.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from brpg_lib import (
    BRPGConfig,
    FeatureTap,
    HeadOutput,
    LabeledBatch,
    ProjectionHead,
    PrototypeHead,
    Schedule,
    UnlabeledBatch,
)
from brpg_lib.examples.loggers import named, numbers, to_tensorboard
from brpg_lib.examples.own_trainer import on, summary
from brpg_lib.examples.smp_unet import SIZE, small_unet
from brpg_lib.examples.training.checkpoints import restore, states
from brpg_lib.examples.training.data.augment import cutmix, cutmix_boxes
from brpg_lib.examples.training.data.digits import CLASS_NAMES
from brpg_lib.examples.training.data.loaders import digit_loader, digit_test_loader
from brpg_lib.examples.training.metrics import evaluate
from brpg_lib.files import save_atomically

EPOCHS, STEPS = 20, 5  # optimizer steps of an epoch
BATCH, ACCUMULATE = 8, 2  # images of a small batch, small batches of a step
FEATURE_DIM, MAX_NORM, TESTED = 32, 5.0, 64
# rare_class_fallback: also classes that the network gets wrong after so short a warm-up have prototypes. align_corners:
# segmentation-models-pytorch enlarges the logits with True, where its decoder's map is smaller than the image.
CONFIG = BRPGConfig.small_data(queue_size=1000, grid_size=16, rare_class_fallback=True, align_corners=True)  # BRPG


class Training:
    """All that changes during the training, and its steps.

    Args:
        device: Where it runs; CUDA takes float16 and a gradient scaler, the CPU bfloat16.
        amp: Whether to use mixed precision.
    """

    def __init__(self, device: str | torch.device = "cpu", amp: bool = True) -> None:
        self.device = torch.device(device)
        half = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        self.autocast = torch.autocast(self.device.type, half, enabled=amp)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp and half is torch.float16)
        self.model = small_unet().to(self.device)
        in_channels = self.model.segmentation_head[0].in_channels
        self.projection = ProjectionHead(in_channels, FEATURE_DIM).to(self.device)  # BRPG
        self.parameters = [*self.model.parameters(), *self.projection.parameters()]  # BRPG: optimized and clipped
        average = get_ema_multi_avg_fn(0.9)  # 0.99 or more where the steps are thousands
        self.teacher = AveragedModel(self.model, multi_avg_fn=average).eval()
        self.teacher_projection = AveragedModel(self.projection, multi_avg_fn=average).eval()  # BRPG
        self.optimizer = torch.optim.AdamW(self.parameters, lr=4e-3)
        self.scheduler = torch.optim.lr_scheduler.PolynomialLR(self.optimizer, EPOCHS * STEPS, power=0.9)

        schedule = Schedule.small_data(total=EPOCHS * STEPS)  # BRPG: in optimizer steps
        self.head = PrototypeHead(len(CLASS_NAMES), FEATURE_DIM, schedule, CONFIG).to(self.device)  # BRPG
        layers = "decoder", "segmentation_head.0"  # BRPG: the features, and the logits before they are enlarged
        self.taps = [FeatureTap(self.model, layer).open() for layer in layers]  # BRPG
        self.teacher_taps = [FeatureTap(self.teacher, layer, grad=False) for layer in layers]  # BRPG

        self.parts: dict[str, Any] = {  # of a checkpoint
            "model": self.model,
            "teacher": self.teacher,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "projection": self.projection,  # BRPG
            "teacher_projection": self.teacher_projection,  # BRPG
            "head": self.head,  # BRPG
        }

    def loss(self, batch: Sequence[Tensor], iteration: int) -> tuple[Tensor, HeadOutput]:
        """The loss of a small batch, and what the head says of it."""
        images, labels, weak, strong = batch
        feature_tap, logit_tap = self.taps  # BRPG
        teacher_feature_tap, teacher_logit_tap = self.teacher_taps  # BRPG
        with torch.no_grad(), teacher_feature_tap, teacher_logit_tap:  # BRPG: they hear no validation
            confidence, pseudo = self.teacher(weak).float().softmax(1).max(1)
            weak_features = self.teacher_projection(teacher_feature_tap.take(1)[0])  # BRPG
            (weak_logits,) = teacher_logit_tap.take(1)  # BRPG

        boxes = cutmix_boxes(len(strong), SIZE).to(self.device)  # what is of the weak images alone stays unmixed
        strong, pseudo, confidence = (cutmix(values, boxes) for values in (strong, pseudo, confidence))
        pred, pred_strong = self.model(torch.cat((images, strong))).float().chunk(2)
        consistency = F.cross_entropy(pred_strong, pseudo, reduction="none") * (confidence > 0.9)
        loss = F.cross_entropy(pred, labels) + consistency.mean()

        features, features_strong = self.projection(feature_tap.take(1)[0]).chunk(2)  # BRPG
        logits, _ = logit_tap.take(1)[0].chunk(2)  # BRPG
        out = self.head(  # BRPG
            LabeledBatch(features=features, logits=logits, labels=labels),
            UnlabeledBatch(
                features=features_strong,
                pseudo_labels=pseudo,
                confidence=confidence,
                weak_features=weak_features,
                weak_logits=weak_logits,
            ),
            iteration=iteration,  # the same for all small batches of a step
        )
        return loss + out.loss, out  # BRPG: out.loss

    def step(self, batches: Iterable[Sequence[Tensor]], iteration: int) -> tuple[Tensor, HeadOutput]:
        """One step of the optimizer. The loss and the head's output are those of the last small batch."""
        self.optimizer.zero_grad()
        for batch in batches:
            with self.autocast:
                loss, out = self.loss(batch, iteration)
            self.scaler.scale(loss / ACCUMULATE).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.teacher.update_parameters(self.model)
        self.teacher_projection.update_parameters(self.projection)  # BRPG
        return loss.detach(), out

    @torch.no_grad()
    def validate(self, batches: Iterable[Sequence[Tensor]]) -> float:
        """The teacher's mean IoU in percent."""
        pairs = ((self.teacher(images).argmax(1), labels) for images, labels in batches)
        return evaluate(pairs, len(CLASS_NAMES), self.device).miou

    def save(self, path: Path, epoch: int) -> None:
        """Writes all that has changed, and the states of the random generators: add those that your data use."""
        random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        save_atomically({"epoch": epoch, "random": random} | states(self.parts), path)

    def resume(self, path: Path) -> int:
        """Takes over what was saved, and returns the number of epochs that were done."""
        saved = torch.load(path, map_location="cpu", weights_only=True)
        restore(self.parts, saved)
        torch.set_rng_state(saved["random"]["cpu"])
        torch.cuda.set_rng_state_all(saved["random"]["cuda"])
        return int(saved["epoch"])


def cropped(device: torch.device, loader: Iterable[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
    """The batches of a loader on a device, at a size that the network can divide."""
    return ([part[..., :SIZE, :SIZE] for part in batch] for batch in on(device, loader))


def train(
    folder: Path, stop: int = EPOCHS, resume: bool = False, device: str | torch.device = "cpu", amp: bool = True
) -> PrototypeHead:
    """Trains to the end of epoch ``stop``, from the start or the checkpoint in ``folder``; saves each epoch there."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    loader, test_loader = digit_loader(STEPS * ACCUMULATE, BATCH), digit_test_loader(TESTED)
    training, log = Training(device, amp), to_tensorboard(folder)
    done = training.resume(folder / "last.pt") if resume else 0
    for epoch in range(done, stop):
        batches = cropped(training.device, loader)
        for iteration in range(epoch * STEPS, (epoch + 1) * STEPS):
            loss, out = training.step(islice(batches, ACCUMULATE), iteration)
        miou = training.validate(cropped(training.device, test_loader))
        log(numbers({"loss": loss, **named(out)}) | {"miou": miou}, iteration + 1)  # BRPG: named(out)
        losses = f"loss {loss.item():.3f}  prototype {out.loss.item():.3f}"
        print(f"step {iteration + 1:3d}  {out.phase.value:7s}  {losses}  mIoU {miou:.1f}")
        training.save(folder / "last.pt", epoch + 1)
    return training.head


def main(argv: Sequence[str] | None = None) -> None:
    """Trains for less than a minute."""
    torch.set_num_threads(1)  # more only wait for each other in so small a network
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/mean_teacher"), help="where checkpoint and log go")
    parser.add_argument("--stop", type=int, default=EPOCHS, metavar="EPOCH", help="interrupt the training after it")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-amp", dest="amp", action="store_false", help="float32 throughout")
    options = parser.parse_args(argv)
    if options.resume and not (options.folder / "last.pt").is_file():
        parser.error(f"--resume: there is no last.pt in {options.folder}")
    print(summary(train(**vars(options))))


if __name__ == "__main__":
    main()
