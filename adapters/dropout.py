"""Dropout that leaves the script's random numbers alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brpg_lib.distributed import rank


class OwnDropout2d(nn.Module):
    """``nn.Dropout2d`` whose draws depend on the seed, the rank, and how often it drew before.

    >>> dropout, before = OwnDropout2d(0.5, seed=1, stream=0), torch.get_rng_state()
    >>> sorted(dropout(torch.ones(1, 100, 1, 1)).unique().tolist())
    [0.0, 2.0]
    >>> bool((torch.get_rng_state() == before).all())
    True

    The global generators stay where they are, nothing waits for the device, and the state dict resumes the draws.

    Args:
        p: Probability of dropping a channel of an image, below 1.
        seed: Of the draws.
        stream: Tells layers of the same seed apart.
    """

    def __init__(self, p: float, *, seed: int, stream: int) -> None:
        super().__init__()
        self.p, self.seed, self.stream = p, seed, stream
        self.drawn = 0

    def forward(self, x: Tensor) -> Tensor:
        """Drop channels of ``(B, C, h, w)`` in train mode, and scale the others up."""
        if not self.training or self.p == 0:
            return x
        sequence = np.random.SeedSequence([self.seed, rank(), self.stream, self.drawn])
        self.drawn += 1
        generator = torch.Generator(x.device).manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        kept = torch.rand(x.shape[:2], device=x.device, dtype=torch.float32, generator=generator) >= self.p
        return x * (kept.to(x.dtype) / (1 - self.p))[..., None, None]

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"p={self.p}"

    def get_extra_state(self) -> Tensor:
        """Seed and number of draws: a resumed training goes on with both."""
        return torch.tensor([self.seed, self.drawn], device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Go on where the other was."""
        self.seed, self.drawn = state.tolist()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())  # states of before have none
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def own_dropout(network: nn.Sequential, seed: int) -> nn.Sequential:
    """Put :class:`OwnDropout2d` in the place of each ``nn.Dropout2d``."""
    for index, layer in enumerate(network):
        if isinstance(layer, nn.Dropout2d):
            network[index] = OwnDropout2d(layer.p, seed=seed, stream=index)
    return network
