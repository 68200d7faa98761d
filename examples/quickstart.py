"""The shortest integration: a plain PyTorch loop on digit scenes, and the three lines that add the prototypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from brpg_lib import BRPGConfig, LabeledBatch, PrototypeHead, Schedule, UnlabeledBatch
from brpg_lib.examples.training.data.augment import to_float
from brpg_lib.examples.training.data.digits import CLASS_NAMES, DigitScenes
from brpg_lib.examples.training.networks.compact import CompactNet

STEPS, BATCH = 150, 8


def main(device: str | torch.device = "cpu") -> None:
    """Trains for less than a minute and prints the losses."""
    torch.set_num_threads(1)  # more only wait for each other in so small a network
    torch.manual_seed(0)
    num_classes = len(CLASS_NAMES)
    images, labels = (torch.stack(x).to(device) for x in zip(*DigitScenes("labeled", 64), strict=True))
    unlabeled_images, _ = (torch.stack(x).to(device) for x in zip(*DigitScenes("unlabeled", 64), strict=True))

    model = CompactNet(num_classes, feature_dim=32, width=16).to(device)  # ends in a classifier and a ProjectionHead
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    head = PrototypeHead(
        num_classes,
        feature_dim=32,
        schedule=Schedule(warmup=STEPS // 2, collect=STEPS // 5, total=STEPS),
        config=BRPGConfig(queue_size=1000, grid_size=16, loss_weight=0.1),
    ).to(device)

    for step in range(STEPS):
        chosen = torch.randint(len(images), (BATCH,), device=device)
        weak = to_float(unlabeled_images[torch.randint(len(unlabeled_images), (BATCH,), device=device)])
        strong = weak + 0.3 * torch.randn_like(weak)

        labeled, unlabeled = model(to_float(images[chosen]), features=BATCH), model(strong, features=BATCH)
        with torch.no_grad():
            teacher = model(weak, features=BATCH)
            confidence, pseudo = teacher.logits.softmax(1).max(1)
        loss = F.cross_entropy(labeled.logits, labels[chosen]) + F.cross_entropy(unlabeled.logits, pseudo)

        labeled_batch = LabeledBatch(features=labeled.features, logits=labeled.low_logits, labels=labels[chosen])
        unlabeled_batch = UnlabeledBatch(
            features=unlabeled.features,
            pseudo_labels=pseudo,
            confidence=confidence,
            weak_features=teacher.features,
            weak_logits=teacher.low_logits,
        )
        out = head(labeled_batch, unlabeled_batch)
        loss = loss + out.loss

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 15 == 0:
            print(f"step {step + 1:3d}  {out.phase.value:7s}  loss {loss.item():.3f}  prototype {out.loss.item():.3f}")
    mask = head.bank.mask
    print(f"{int(mask.sum())} prototypes, of {int(mask.any(2).any(1).sum())} of {num_classes} classes")


if __name__ == "__main__":
    main()
