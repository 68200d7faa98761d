"""From the range of the trainers' images to the one that ImageNet weights expect."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brpg_lib.examples.training.data.augment import IMAGE_CENTER, IMAGE_SPREAD

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class ImageNetNormalize(nn.Module):
    """Undoes :func:`~brpg_lib.examples.training.data.augment.to_float`; then mean and deviation of the training.

    Args:
        means: Per channel, of values in 0..255; ImageNet's.
        stds: Likewise.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, means: Sequence[float] = MEAN, stds: Sequence[float] = STD) -> None:
        super().__init__()
        mean, std = torch.tensor(means)[:, None, None], torch.tensor(stds)[:, None, None]
        self.register_buffer("scale", IMAGE_SPREAD / std, persistent=False)
        self.register_buffer("shift", (IMAGE_CENTER - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to the same shape."""
        return images * self.scale + self.shift
