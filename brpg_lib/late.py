"""Values of a device that the host hears of when they are there, without waiting for what else it computes."""

from __future__ import annotations

import torch
from torch import Tensor


class LateCopy:
    """A copy in host memory, begun now. Elsewhere than on CUDA it is the tensor itself.

    >>> LateCopy(torch.tensor([3, 4])).value.tolist()
    [3, 4]

    Args:
        there: What to copy, on any device.
    """

    def __init__(self, there: Tensor) -> None:
        self._here, self._event = there, None
        if there.is_cuda:
            self._event = torch.cuda.Event()
            here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            self._here = here.copy_(there, non_blocking=True)
            self._event.record()

    @property
    def ready(self) -> bool:
        """Whether :attr:`value` would not wait."""
        return self._event is None or self._event.query()

    @property
    def value(self) -> Tensor:
        """The values; waits for them, not for what came after them."""
        if self._event is not None:
            self._event.synchronize()
        return self._here
