"""The Trainer of Hugging Face Transformers, on SegFormer: the head's loss, its state in checkpoints, its metrics."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from brpg_lib import FeatureTap, LabeledBatch, ProjectionHead, PrototypeHead, Schedule, UnlabeledBatch
from brpg_lib.examples.loggers import named, numbers
from brpg_lib.examples.own_trainer import CONFIG, self_training_loss, summary
from brpg_lib.examples.segformer import LAYER, enlarge, small_segformer
from brpg_lib.examples.training.data.digits import CLASS_NAMES
from brpg_lib.examples.training.data.loaders import DigitViews
from brpg_lib.files import save_atomically

STEPS = 128
FILE = "brpg_head.pt"


class Segmenter(nn.Module):
    """SegFormer and the projection, which makes the Trainer save and load both.

    (A Trainer of transformers 5.24 does not find the weights of a bare SegFormer again, which it saves by other names.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.segformer, self.projection = small_segformer(), ProjectionHead(in_channels=64, feature_dim=32)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        """Logits, and a loss where there are labels."""
        return self.segformer(pixel_values=pixel_values, labels=labels)


class PrototypeTrainer(Trainer):  # type: ignore[misc]
    """Trains on labeled images beside a weak and a strong view of unlabeled ones.

    Args:
        head: The head.
        **options: Of the Trainer; its model is a :class:`Segmenter`.
    """

    def __init__(self, head: PrototypeHead, **options: Any) -> None:
        super().__init__(**options)
        self.head = head.to(self.args.device)
        self.tap: FeatureTap | None = None
        self.add_callback(SaveHead(head))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *rest: Any, **options: Any) -> Any:
        """The loss of a step; evaluation is as it was."""
        images, labels = inputs["pixel_values"], inputs["labels"]
        if not model.training:
            return super().compute_loss(model, {"pixel_values": images, "labels": labels}, *rest, **options)
        weak, strong = inputs["weak"], inputs["strong"]
        self.tap = (
            self.tap or FeatureTap(model, f"segformer.{LAYER}").open()
        )  # in whatever the Trainer has wrapped it by now
        logits, logits_weak, logits_strong = model(pixel_values=torch.cat((images, weak, strong))).logits.chunk(3)
        views = (enlarge(logits, images), labels, enlarge(logits_weak, images), enlarge(logits_strong, images))
        loss, pseudo, confidence = self_training_loss(*views)
        features, features_weak, features_strong = self.model.projection(self.tap.take(1)[0]).chunk(3)
        out = self.head(
            LabeledBatch(features=features, logits=logits, labels=labels),
            UnlabeledBatch(
                features=features_strong,
                pseudo_labels=pseudo,
                confidence=confidence,
                weak_features=features_weak,
                weak_logits=logits_weak,
            ),
        )
        if self.state.global_step % self.args.logging_steps == 0:
            self.log(numbers(named(out)))
        return loss + out.loss

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> Any:
        """From the start, or a checkpoint with the head's state beside the Trainer's."""
        found = resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(self.args.output_dir)
        if found:
            self.head.load_state_dict(torch.load(Path(found) / FILE, weights_only=True))
        return super().train(found or None, **options)


class SaveHead(TrainerCallback):  # type: ignore[misc]
    """Adds a file to each checkpoint."""

    def __init__(self, head: PrototypeHead) -> None:
        self.head = head

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """After the Trainer has written its own."""
        if state.is_world_process_zero:
            save_atomically(self.head.state_dict(), Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE)


def collate(scenes: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """A batch by the names of SegFormer's inputs."""
    names = ("pixel_values", "labels", "weak", "strong")
    return {name: torch.stack(parts) for name, parts in zip(names, zip(*scenes, strict=True), strict=True)}


def train(folder: Path, stop: int = STEPS, resume: bool = False) -> PrototypeHead:
    """Trains to step ``stop``, from the start or the last checkpoint in ``folder``; saves eight times in all."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=stop,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        save_steps=STEPS // 8,
        logging_steps=STEPS // 8,
        report_to=["tensorboard"],
        remove_unused_columns=False,  # such as the views
        ddp_find_unused_parameters=False,  # those of the projection are used, if not in the model's forward pass
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    torch.manual_seed(0)
    model = Segmenter()
    schedule = Schedule(warmup=STEPS // 2, collect=STEPS // 4, total=STEPS)
    head = PrototypeHead(len(CLASS_NAMES), feature_dim=32, schedule=schedule, config=CONFIG)
    trainer = PrototypeTrainer(
        head, model=model, args=arguments, train_dataset=DigitViews(8 * STEPS), data_collator=collate
    )
    trainer.train(resume_from_checkpoint=resume)
    return head


def main(argv: Sequence[str] | None = None) -> None:
    """Trains for less than a minute."""
    torch.set_num_threads(1)  # more only wait for each other in so small a network
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/hf_trainer"), help="where checkpoints and logs go")
    parser.add_argument("--stop", type=int, default=STEPS, metavar="STEP", help="end the training after it")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    print(summary(train(**vars(parser.parse_args(argv)))))


if __name__ == "__main__":
    main()
