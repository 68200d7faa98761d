"""Plug-ins of patched scripts, and a network to tap, on made-up batches."""

from __future__ import annotations

from typing import Any

import torch
from builders import CLASSES, DIM, labeled, unlabeled
from torch import Tensor, nn

from brpg_lib.adapters.plugin import Plugin

EPOCHS, ITERATIONS = 20, 10
SMALL = {"queue_size": 200, "grid_size": 6, "unlabeled_samples_per_image": 40, "warmup": 0.1, "collect": 0.3}
"""A section for the batches of `builders`: 1 step of warm-up, 3 of collecting."""


def plugin(section: Any = None, *, dataset: str = "pascal", feature_dim: int = DIM, **options: Any) -> Plugin:
    return Plugin(
        section,
        dataset=dataset,
        num_classes=CLASSES,
        feature_dim=feature_dim,
        epochs=EPOCHS,
        iters_per_epoch=ITERATIONS,
        **options,
    )


def step(brpg: Plugin, iteration: int) -> Tensor:
    return brpg(labeled(10 * iteration), unlabeled(10 * iteration), iteration=iteration)


def run(brpg: Plugin, iterations: range) -> Plugin:
    for iteration in iterations:
        step(brpg, iteration)
    return brpg


class Network(nn.Module):
    """Decoder features of 6 channels, and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Conv2d(3, 6, 3, padding=1)
        self.classifier = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.decoder(x))


def optimizer_of(network: Network) -> torch.optim.Optimizer:
    groups = [{"params": [*network.decoder.parameters()], "lr": 0.1}, {"params": [*network.classifier.parameters()]}]
    return torch.optim.SGD(groups, lr=0.2, momentum=0.9)


def projecting(section: dict[str, Any] | None = None, *, teacher: bool = False, seed: int = 0) -> Plugin:
    torch.manual_seed(seed)
    brpg = plugin(SMALL | (section or {}))
    brpg.add_projection(6, optimizer_of(Network()).param_groups[1], teacher=teacher)
    return brpg
