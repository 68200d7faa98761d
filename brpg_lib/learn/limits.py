"""Which pseudo labels are reliable: of each class the most confident ones.

One threshold for all classes passes almost every pixel of the easy classes and hardly one of the hard ones. What learns
from these alone forgets the hard ones.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from brpg_lib.batches import UnlabeledBatch
from brpg_lib.kernels.classes import known_classes
from brpg_lib.kernels.segments import counts_by_index
from brpg_lib.state import StateModule
from brpg_lib.validation import require_integer, require_number

BINS = 100
"""Of the confidence, in which a limit is looked for."""
HIGHEST = 0.98
"""A pixel at least this confident is always reliable, also where most of its class are more so."""
FEWEST = 20
"""Pixels of a class in a step that say something about it."""
MEMORY = 0.9
"""Share of a limit that a step keeps: one batch holds few pixels of a rare class."""
SEEN = 1e-6
"""Lowest limit of a class that was seen; 0 says that it was not."""
LOOKED_AT = 128
"""Rows or columns of an image, at least, that are looked at."""


class ClassLimits(StateModule):
    """Keeps the same share of the pixels of every class, as class-balanced self-training does (Zou et al., ECCV 2018).

    Each class has a limit: the confidence that the wanted share of its pixels reaches, averaged over steps. Counts of a
    step, which may be added up over processes, move it. Nothing here waits for the device.

    Example:
        >>> import torch
        >>> limits = ClassLimits(2, share=0.5)
        >>> classes = torch.tensor([0, 1]).repeat_interleave(100).view(1, 2, 100)
        >>> confidence = torch.cat((torch.linspace(0.5, 0.9, 100), torch.linspace(0.2, 0.4, 100))).view(1, 2, 100)
        >>> limits.follow(limits.counts(classes, confidence))
        >>> [round(limit, 2) for limit in limits().tolist()]
        [0.7, 0.3]

    State:
        values: ``(C,)`` float32, 0 for a class not seen yet.

    Args:
        num_classes: Number of classes C.
        share: Of the pixels of each class, above 0 and at most 1; None keeps no limits.

    Raises:
        ValueError: An argument is out of range.
    """

    values: Tensor

    def __init__(self, num_classes: int, share: float | None) -> None:
        super().__init__()
        num_classes = require_integer("num_classes", num_classes, 1)
        if share is not None:
            share = require_number("share", share, 0.0, 1.0, open_low=True)
        self.share = share
        self.register_state("values", torch.zeros(num_classes, dtype=torch.float32))

    def reset(self) -> None:
        """Forget all classes."""
        self.values.zero_()

    @property
    def num_counts(self) -> int:
        """Length of the counts of a step."""
        return 0 if self.share is None else len(self.values) * BINS

    def forward(self, unseen: float | Tensor = 0.0) -> Tensor:
        """The confidence from which a pixel of each class is reliable.

        Args:
            unseen: What holds for a class that no step has shown yet.

        Returns:
            ``(C,)`` float32; with no share, ``unseen``.
        """
        if self.share is None:
            return torch.as_tensor(unseen, dtype=torch.float32, device=self.values.device)
        return torch.where(self.values > 0, self.values.clamp(max=HIGHEST), unseen)

    @torch.no_grad()
    def counts(self, classes: Tensor, confidence: Tensor) -> Tensor:
        """How the confidence of each class is distributed in a step, on every s-th row and column of large images.

        Args:
            classes: ``(B, H, W)`` integer; what is no class does not count.
            confidence: ``(B, H, W)`` between 0 and 1.

        Returns:
            ``(num_counts,)`` float32.
        """
        if self.share is None:
            return torch.zeros(0, dtype=torch.float32, device=self.values.device)
        stride = max(1, min(classes.shape[1:]) // LOOKED_AT)
        few = (slice(None), *[slice(None, None, stride)] * (classes.ndim - 1))
        classes, confidence = (values[few].flatten() for values in (classes, confidence))
        target, known = known_classes(classes, len(self.values))
        bins = (confidence.float() * BINS).long().clamp(0, BINS - 1)
        return counts_by_index(torch.where(known, target * BINS + bins, self.num_counts), self.num_counts).float()

    def counts_of(self, unlabeled: UnlabeledBatch | None) -> Tensor:
        """:meth:`counts` of a batch, zeros without one."""
        if unlabeled is None:
            return torch.zeros(self.num_counts, dtype=torch.float32, device=self.values.device)
        return self.counts(unlabeled.pseudo_labels, unlabeled.confidence)

    @torch.no_grad()
    def follow(self, counts: Tensor) -> None:
        """Move the limits of the classes that a step has shown.

        Args:
            counts: From :meth:`counts`, of all processes.
        """
        if self.share is None:
            return
        at_least = rearrange(counts, "(c bins) -> c bins", bins=BINS).flip(1).cumsum(1).flip(1)
        total = at_least[:, 0]
        highest = (at_least >= self.share * total[:, None]).sum(1) - 1
        now = (highest.float() / BINS).clamp(min=SEEN)
        averaged = torch.where(self.values > 0, now.lerp(self.values, MEMORY), now)
        self.values.copy_(torch.where(total >= FEWEST, averaged, self.values))
