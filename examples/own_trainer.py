"""A loop of your own around an unmodified torchvision network; ``# BRPG`` marks what the prototypes add to it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.segmentation.fcn import FCN, FCNHead

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
from brpg_lib.examples.training.data.digits import CLASS_NAMES
from brpg_lib.examples.training.data.loaders import digit_loader

# torchvision interpolates with align_corners=False, and the head has to know.
CONFIG = BRPGConfig(queue_size=1000, grid_size=16, loss_weight=0.1, align_corners=False)


def small_fcn() -> FCN:
    """FCN on the first stage of a ResNet-18, from scratch; its layer ``classifier.2`` puts out 16 channels."""
    backbone = create_feature_extractor(resnet18(weights=None), {"layer1": "out"})
    return FCN(backbone, FCNHead(64, len(CLASS_NAMES)))


def self_training_loss(labeled: Tensor, labels: Tensor, weak: Tensor, strong: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """FixMatch: where the logits of the weak view are sure, they label the strong view.

    Returns:
        The loss, the pseudo labels and their confidence.
    """
    confidence, pseudo = weak.detach().softmax(1).max(1)
    consistency = F.cross_entropy(strong, pseudo, reduction="none") * (confidence > 0.9)
    return F.cross_entropy(labeled, labels) + consistency.mean(), pseudo, confidence


def on(device: str | torch.device, loader: Iterable[Sequence[Tensor]]) -> Iterator[Sequence[Tensor]]:
    """The batches of a loader, on a device."""
    for batch in loader:
        yield [part.to(device, non_blocking=True) for part in batch]


def train(
    steps: int, device: str | torch.device = "cpu", log: Callable[[HeadOutput, int], None] | None = None
) -> PrototypeHead:
    """Trains and prints the losses, and hands every tenth output of the head and its step to ``log``."""
    torch.manual_seed(0)
    model = small_fcn().to(device)
    projection = ProjectionHead(in_channels=16, feature_dim=32).to(device)  # BRPG
    schedule = Schedule(warmup=steps // 2, collect=steps // 5, total=steps)  # BRPG
    head = PrototypeHead(len(CLASS_NAMES), feature_dim=32, schedule=schedule, config=CONFIG).to(device)  # BRPG
    optimizer = torch.optim.AdamW([*model.parameters(), *projection.parameters()], lr=2e-3)  # BRPG: projection

    with FeatureTap(model, "classifier.2") as feature_tap, FeatureTap(model, "classifier") as logit_tap:  # BRPG
        for step, (images, labels, weak, strong) in enumerate(on(device, digit_loader(steps)), 1):
            pred, pred_weak, pred_strong = model(torch.cat((images, weak, strong)))["out"].chunk(3)
            loss, pseudo, confidence = self_training_loss(pred, labels, pred_weak, pred_strong)

            features, features_weak, features_strong = projection(feature_tap.take(1)[0]).chunk(3)  # BRPG
            logits, logits_weak, _ = logit_tap.take(1)[0].chunk(3)  # BRPG: not enlarged, like the features
            out = head(  # BRPG
                LabeledBatch(features=features, logits=logits, labels=labels),
                UnlabeledBatch(
                    features=features_strong,
                    pseudo_labels=pseudo,
                    confidence=confidence,
                    weak_features=features_weak,
                    weak_logits=logits_weak,
                ),
            )
            loss = loss + out.loss  # BRPG

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 10 == 0:
                print(f"step {step:3d}  {out.phase.value:7s}  loss {loss.item():.3f}  prototype {out.loss.item():.3f}")
                if log is not None:
                    log(out, step)
    return head


def summary(head: PrototypeHead) -> str:
    """How many prototypes there are."""
    return f"{int(head.bank.mask.sum())} prototypes, of {sum(head.bank.present)} of {head.num_classes} classes"


def main(argv: Sequence[str] | None = None) -> None:
    """Trains for less than a minute."""
    torch.set_num_threads(1)  # more only wait for each other in so small a network
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--device", default="cpu")
    print(summary(train(**vars(parser.parse_args(argv)))))


if __name__ == "__main__":
    main()
