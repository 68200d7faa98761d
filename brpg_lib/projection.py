"""The representation branch, for networks that have none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from brpg_lib.keywords import with_checked_keywords
from brpg_lib.notices import warn
from brpg_lib.validation import require_integer, require_number

PATIENCE = 100
"""Passes with gradients in which the weights may stay as they are; more than a gradient is accumulated over."""

NOTHING = torch.zeros((), dtype=torch.bool, device="cpu")
STILL = (
    f"the weights of a ProjectionHead are the same as {PATIENCE} training passes ago: are they in an optimizer, with a "
    "learning rate above 0? optimizer.add_param_group({'params': projection.parameters()}) adds them"
)

LAYERS: dict[int, tuple[Any, Any, Any]] = {
    2: (nn.Conv2d, nn.BatchNorm2d, nn.Dropout2d),
    3: (nn.Conv3d, nn.BatchNorm3d, nn.Dropout3d),
}
"""Convolution, normalization and dropout of channels, by the number of axes."""


@with_checked_keywords
class ProjectionHead(nn.Sequential):
    """Maps decoder features to the space of the prototypes, as in the paper.

    >>> ProjectionHead(in_channels=16, feature_dim=8)(torch.rand(2, 16, 5, 5)).shape
    torch.Size([2, 8, 5, 5])

    Twice a 3x3 convolution, batch normalization, ReLU and channel dropout, then a 1x1 convolution. It has learnable
    parameters: make it part of your model, so that the optimizer and DDP see it.

    Args:
        in_channels: Channels of the input.
        feature_dim: Channels of the output and of the layers between.
        dropout: Probability of dropping a channel.
        spatial_dims: 2 for images, 3 for volumes.

    Raises:
        ValueError: An argument is out of range.
    """

    _arrived = NOTHING

    def __init__(self, in_channels: int, feature_dim: int = 256, dropout: float = 0.1, spatial_dims: int = 2) -> None:
        in_channels = require_integer("in_channels", in_channels, 1)
        feature_dim = require_integer("feature_dim", feature_dim, 1)
        dropout = require_number("dropout", dropout, 0.0, 1.0)
        spatial_dims = require_integer("spatial_dims", spatial_dims, 2, 3)
        super().__init__(
            *_block(in_channels, feature_dim, dropout, spatial_dims),
            *_block(feature_dim, feature_dim, dropout, spatial_dims),
            LAYERS[spatial_dims][0](feature_dim, feature_dim, kernel_size=1),
        )
        self._calls, self._before = 0, torch.empty(0)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(B, in_channels, h, w)`` to ``(B, feature_dim, h, w)``; volumes have one axis more."""
        base: Any = super()
        output: Tensor = base.forward(features)
        if self.training and self._calls < PATIENCE and not torch.compiler.is_compiling() and output.requires_grad:
            output.register_hook(self._note)
            self._look_whether_it_trains()
        return output

    def _note(self, gradient: Tensor) -> None:
        """Keep in mind, on the device, whether any gradient but 0 arrived: in a warm-up none does."""
        arrived = gradient.any()
        known = self._arrived.device == arrived.device
        self._arrived = self._arrived | arrived if known else arrived

    def _look_whether_it_trains(self) -> None:
        """Warn, once, where the weights are the same after many passes with gradients; the device is asked once."""
        self._calls += 1
        last: Any = self[-1]
        if self._calls == 1:
            self._before, self._arrived = last.weight.detach().clone(), NOTHING
        elif self._calls == PATIENCE:
            before, self._before = self._before, torch.empty(0)
            comparable = before.device == last.weight.device and before.shape == last.weight.shape
            if comparable and last.weight.requires_grad and bool((before == last.weight).all()):
                if self._arrived:
                    warn(STILL)
                else:
                    self._calls = 0  # look again


def _block(in_channels: int, out_channels: int, dropout: float, spatial_dims: int) -> tuple[nn.Module, ...]:
    convolution, normalization, drop = LAYERS[spatial_dims]
    return (
        convolution(in_channels, out_channels, kernel_size=3, padding=1),
        normalization(out_channels),
        nn.ReLU(inplace=True),
        drop(dropout),
    )
