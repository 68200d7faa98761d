"""SegFormer from Hugging Face Transformers, with a mean teacher that labels the weak views and gives their features."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from brpg_lib import FeatureTap, LabeledBatch, ProjectionHead, PrototypeHead, Schedule, UnlabeledBatch
from brpg_lib.examples.own_trainer import CONFIG, on, self_training_loss, summary
from brpg_lib.examples.training.data.digits import CLASS_NAMES
from brpg_lib.examples.training.data.loaders import digit_loader

LAYER = "decode_head.activation"  # after the fusion of all scales; what follows is dropout and the classifier


def small_segformer() -> SegformerForSemanticSegmentation:
    """A SegFormer with one block per stage, from scratch."""
    config = SegformerConfig(
        num_labels=len(CLASS_NAMES),
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 128],
        num_attention_heads=[1, 2, 4, 8],
        decoder_hidden_size=64,
        drop_path_rate=0.0,
    )
    return SegformerForSemanticSegmentation(config)


def enlarge(logits: Tensor, like: Tensor) -> Tensor:
    """Logits at the resolution of an image."""
    return F.interpolate(logits, like.shape[-2:], mode="bilinear")


def train(steps: int, device: str | torch.device = "cpu") -> PrototypeHead:
    """Trains and prints the losses."""
    torch.manual_seed(0)
    model, projection = small_segformer().to(device), ProjectionHead(in_channels=64, feature_dim=32).to(device)
    average = get_ema_multi_avg_fn(0.95)
    teacher, teacher_projection = (AveragedModel(m, multi_avg_fn=average).eval() for m in (model, projection))
    optimizer = torch.optim.AdamW([*model.parameters(), *projection.parameters()], lr=2e-3)
    schedule = Schedule(warmup=steps // 2, collect=steps // 5, total=steps)
    head = PrototypeHead(len(CLASS_NAMES), feature_dim=32, schedule=schedule, config=CONFIG).to(device)

    with FeatureTap(model, LAYER) as tap, FeatureTap(teacher, LAYER, grad=False) as teacher_tap:
        for step, (images, labels, weak, strong) in enumerate(on(device, digit_loader(steps)), 1):
            with torch.no_grad():
                logits_weak = teacher(weak).logits
                features_weak = teacher_projection(teacher_tap.take(1)[0])
            logits, logits_strong = model(torch.cat((images, strong))).logits.chunk(2)
            features, features_strong = projection(tap.take(1)[0]).chunk(2)

            views = (enlarge(logits, images), labels, enlarge(logits_weak, images), enlarge(logits_strong, images))
            loss, pseudo, confidence = self_training_loss(*views)
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
            loss.backward()
            optimizer.step()
            teacher.update_parameters(model)
            teacher_projection.update_parameters(projection)
            if step % 10 == 0:
                print(f"step {step:3d}  {out.phase.value:7s}  loss {loss.item():.3f}  prototype {out.loss.item():.3f}")
    return head


def main(argv: Sequence[str] | None = None) -> None:
    """Trains for less than a minute."""
    torch.set_num_threads(1)  # more only wait for each other in so small a network
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--device", default="cpu")
    print(summary(train(**vars(parser.parse_args(argv)))))


if __name__ == "__main__":
    main()
