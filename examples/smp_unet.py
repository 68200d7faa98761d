"""A network of segmentation-models-pytorch, unmodified: features and logits come from its decoder and its head."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from brpg_lib import FeatureTap, LabeledBatch, ProjectionHead, PrototypeHead, Schedule, UnlabeledBatch
from brpg_lib.examples.own_trainer import CONFIG, on, self_training_loss, summary
from brpg_lib.examples.training.data.digits import CLASS_NAMES
from brpg_lib.examples.training.data.loaders import digit_loader

SIZE = 32
"""Of the images: a multiple of what the encoder divides by."""


def small_unet() -> smp.Unet:
    """A U-Net on three stages of a ResNet-18, from scratch; other names of decoders and encoders work as well."""
    return smp.Unet(
        "resnet18", encoder_depth=3, encoder_weights=None, decoder_channels=(64, 32, 16), classes=len(CLASS_NAMES)
    )


def train(steps: int, device: str | torch.device = "cpu") -> PrototypeHead:
    """Trains and prints the losses."""
    torch.manual_seed(0)
    model, projection = small_unet().to(device), ProjectionHead(in_channels=16, feature_dim=32).to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *projection.parameters()], lr=2e-3)
    schedule = Schedule(warmup=steps // 2, collect=steps // 5, total=steps)
    head = PrototypeHead(len(CLASS_NAMES), feature_dim=32, schedule=schedule, config=CONFIG).to(device)

    with FeatureTap(model, "decoder") as tap:  # its output has the size of the images, as the logits have
        for step, views in enumerate(on(device, digit_loader(steps)), 1):
            images, labels, weak, strong = (view[..., :SIZE, :SIZE] for view in views)
            logits, logits_weak, logits_strong = model(torch.cat((images, weak, strong))).chunk(3)
            loss, pseudo, confidence = self_training_loss(logits, labels, logits_weak, logits_strong)
            maps: Tensor = projection(tap.take(1)[0])
            features, features_weak, features_strong = maps.chunk(3)
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
            if step % 10 == 0:
                print(f"step {step:3d}  {out.phase.value:7s}  loss {loss.item():.3f}  prototype {out.loss.item():.3f}")
    return head


def main(argv: Sequence[str] | None = None) -> None:
    """Trains for less than a minute."""
    torch.set_num_threads(1)  # more only wait for each other in so small a network
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--device", default="cpu")
    print(summary(train(**vars(parser.parse_args(argv)))))


if __name__ == "__main__":
    main()
