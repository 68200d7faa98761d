"""A network whose layers are listened to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from brpg_lib import FeatureTap
from brpg_lib.layers import WRAPPERS


class Net(nn.Module):
    """A decoder that one step calls in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.fuse = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
        self.classifier = nn.Conv2d(5, 2, 1)
        self.pair = Pair()

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        x = self.backbone(x)
        return self.classifier(self.fuse(torch.cat((x, 0.5 * x)) if twice else x))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


X = torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)


def evaluate(net: nn.Module) -> None:
    net.eval()
    with torch.no_grad():
        for _ in range(3):
            net(X)
    net.train()


def gradients(net: nn.Module, path: str, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Features of two steps, and the gradient of a loss of both features and logits in the second."""
    with FeatureTap(net, path) as tap:
        for _ in range(2):
            net.zero_grad()
            out = net(x)
            (features,) = tap.take(1)
            (out.square().mean() + features.square().sum()).backward()
    found = {bare(name): p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return features.detach(), [found[name] for name in sorted(found)]


def bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


class Trainer:
    """Holds a network and its tap."""

    def __init__(self, net: nn.Module) -> None:
        self.tap = FeatureTap(net, "fuse").open()
        self.net = net

    def step(self) -> Tensor:
        out = self.net(X)
        (features,) = self.tap.take(1)
        assert_close(self.net.classifier(features), out)
        return features
