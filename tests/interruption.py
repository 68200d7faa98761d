"""A small semi-supervised training that can be killed at any moment, for processes that share its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from builders import CLASSES, DIM, head, label_map
from torch import Tensor, nn

from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.distributed import rank
from brpg_lib.files import save_atomically

IMAGES, STEPS = 4, 40
HEADS: dict[str, dict[str, Any]] = {
    "clustered once": {"warmup": 6, "collect": 10, "total": STEPS, "unlabeled_samples_per_image": 10**6},
    "clustered again and again": {
        "warmup": 4, "collect": 6, "total": STEPS, "recluster_every": 5, "class_adaptive": (0.1, 0.9),
        "rare_class_fallback": True, "samples_per_image": 30,
    },
}  # fmt: skip


class Network(nn.Module):
    """In float64, so that another order of summation does not show in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, DIM, 3, padding=1)
        self.classifier = nn.Conv2d(DIM, CLASSES, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.features(images))
        return features, self.classifier(features)


def scenes(step: int, kind: int) -> tuple[Tensor, Tensor]:
    """All images of a step and their labels: a color for each class, and noise."""
    labels = label_map(IMAGES, CLASSES, (12, 12), 10 * step + kind)
    random = torch.Generator().manual_seed(10 * step + kind)
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    noise = 0.3 * torch.randn(IMAGES, 3, 12, 12, generator=random, dtype=torch.float64)
    return colors[labels].movedim(3, 1) + noise, labels


def train(index: int, ranks: int, folder: Path, name: str, progress: Any = None) -> None:
    """Train from the checkpoint in the folder, if there is one, to the end; rank 0 saves after each step."""
    torch.manual_seed(0)
    network = Network().double()
    module = head(**HEADS[name])
    model = nn.parallel.DistributedDataParallel(network) if ranks > 1 else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9)
    parts = {"network": network, "optimizer": optimizer, "head": module}
    path = folder / "checkpoint.pt"
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(saved[key])
    own = slice(index * IMAGES // ranks, (index + 1) * IMAGES // ranks)
    for step in range(module.iteration, STEPS):
        images, labels = (values[own] for values in scenes(step, 0))
        strong, _ = (values[own] for values in scenes(step, 1))
        weak = strong.flip(3)
        features, logits = model(torch.cat((images, strong, weak)))
        (first, second, third), (pred, _, weak_pred) = features.chunk(3), logits.chunk(3)
        confidence, pseudo = weak_pred.detach().flip(3).softmax(1).max(1)
        out = module(
            LabeledBatch(features=first.float(), logits=pred.float(), labels=labels),
            UnlabeledBatch(
                features=second.float(),
                pseudo_labels=pseudo,
                confidence=confidence.float(),
                weak_features=third.float(),
                weak_logits=weak_pred.float(),
            ),
        )
        loss = nn.functional.cross_entropy(pred, labels) + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank() == 0:
            save_atomically({key: part.state_dict() for key, part in parts.items()}, path)
        if progress is not None:
            with progress.get_lock():
                progress.value = max(progress.value, step + 1)
