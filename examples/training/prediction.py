"""Predictions for images of any size, by the network and by the prototypes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from brpg_lib import PrototypeBank
from brpg_lib.examples.training.data.augment import to_float
from brpg_lib.examples.training.frameworks.second_opinion import similarity_maps
from brpg_lib.examples.training.networks.base import Segmenter


class Predicted(NamedTuple):
    """What is predicted for ``B`` images.

    Attributes:
        probabilities: ``(B, C, H, W)`` float32 of the network.
        similarity: ``(B, C, H, W)`` float32, cosine to each class's nearest prototype; None without prototypes.
    """

    probabilities: Tensor
    similarity: Tensor | None

    def classes(self, by_prototypes: bool = False) -> Tensor:
        """The most probable classes ``(B, H, W)`` int64, or those of the nearest prototypes.

        Raises:
            ValueError: There are no prototypes.
        """
        if not by_prototypes:
            return self.probabilities.argmax(1)
        if self.similarity is None:
            raise ValueError("bank: expected prototypes to classify by, found None")
        return self.similarity.argmax(1)

    def enlarged(self, size: tuple[int, int]) -> Predicted:
        """The same for images of another height and width, of which these are reduced ones."""
        if self.probabilities.shape[2:] == size:
            return self
        maps = (m if m is None else F.interpolate(m, size, mode="bilinear", align_corners=False) for m in self)
        return Predicted(*maps)  # type: ignore[arg-type]

    def entropy(self) -> Tensor:
        """Entropy of the probabilities ``(B, H, W)``, from 0 (certain) to 1 (all classes are equally probable)."""
        classes = self.probabilities.shape[1]
        found: Tensor = torch.special.entr(self.probabilities).sum(1) / math.log(max(2, classes))
        return found


@torch.no_grad()
def predict(
    network: Segmenter,
    images: Tensor,
    *,
    bank: PrototypeBank | None = None,
    window: int | None = None,
    batch_size: int = 4,
    align_corners: bool = True,
) -> Predicted:
    """Segments images of one size.

    >>> from brpg_lib.examples.training.networks import build_network
    >>> network = build_network("compact", num_classes=3, feature_dim=8).eval()
    >>> images = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    >>> predict(network, images, window=33).classes().shape
    torch.Size([2, 40, 50])

    Args:
        network: In eval mode.
        images: ``(B, 3, H, W)`` uint8, on the network's device.
        bank: Prototypes of the network's features, on the same device.
        window: None to show the network whole images, or the side of windows that move by two thirds of it; where they
            overlap, probabilities and similarities are averaged.
        batch_size: Windows, or whole images, that pass the network at once.
        align_corners: How features and pixels correspond, as in the head's config.
    """
    count, _, height, width = images.shape
    places = [(r, c) for r in windows(height, window or height) for c in windows(width, window or width)]
    tiles = [(index, rows, columns) for index in range(count) for rows, columns in places]
    sums: list[Tensor] = []
    for start in range(0, len(tiles), batch_size):
        part = tiles[start : start + batch_size]
        crops = torch.stack([images[index, :, rows, columns] for index, rows, columns in part])
        found = _of_crops(network, to_float(crops), bank, align_corners)
        if not sums:
            sums = [values.new_zeros(count, values.shape[1], height, width) for values in found]
        for total, values in zip(sums, found, strict=True):
            for (index, rows, columns), value in zip(part, values, strict=True):
                total[index, :, rows, columns] += value
    if len(places) > 1:
        cover = sums[0].new_zeros(height, width)
        for rows, columns in places:
            cover[rows, columns] += 1
        sums = [total.div_(cover) for total in sums]
    return Predicted(sums[0], sums[1] if bank is not None else None)


def _of_crops(network: Segmenter, crops: Tensor, bank: PrototypeBank | None, align_corners: bool) -> list[Tensor]:
    """Probabilities ``(b, C, h, w)``, and with a bank similarities likewise."""
    if bank is None:
        return [network(crops).logits.float().softmax(1)]
    predicted = network(crops, features=len(crops))
    assert predicted.features is not None, "a network with prototypes has a representation branch"
    size = crops.shape[-2:]  # crop by crop: to all prototypes at once, similarities would need much memory
    maps = [similarity_maps(bank, features[None], size, align_corners) for features in predicted.features]
    return [predicted.logits.float().softmax(1), torch.cat(maps)]


def windows(length: int, window: int) -> list[slice]:
    """Windows that cover a length, the last one flush with its end."""
    if length <= window:
        return [slice(0, length)]
    stride = math.ceil(window * 2 / 3)
    count = math.ceil((length - window) / stride) + 1
    return [slice(start, start + window) for start in (min(i * stride, length - window) for i in range(count))]
