"""What a patched script hears of its networks: features and logits of each pass of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brpg_lib import FeatureTap
from brpg_lib.validation import require


class Listener(nn.Module):
    """Listens to two layers of the student, and of a teacher within its passes.

    Attributes:
        enabled: Whether it listens at all.
    """

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled
        self._taps: list[FeatureTap] = []
        self._teacher_taps: list[FeatureTap] = []

    def tap(
        self,
        model: nn.Module,
        *,
        features: str | None = None,
        logits: str,
        teacher: nn.Module | None = None,
        stride: int = 1,
    ) -> None:
        """Listen to two layers.

        Args:
            model: The student.
            features: Dotted name of the layer whose output is the decoder's features ``(B, in_channels, h, w)``;
                ``None`` for what goes into the layer of the logits.
            logits: Name of the layer whose output is the logits ``(B, C, h, w)``, of the same size.
            teacher: The EMA teacher, if there is one; heard within :meth:`teacher_pass` only.
            stride: Each map is shrunk by it, for decoders whose maps are nearly as large as the image.
        """
        if not self.enabled:
            return
        self._stride = stride
        places: list[dict[str, Any]] = [{"path": features or logits, "input": features is None}, {"path": logits}]
        self._taps = [FeatureTap(model, **place).open() for place in places]
        if teacher is not None:
            self._teacher_taps = [FeatureTap(teacher, **place, grad=False) for place in places]

    def take(self, calls: int) -> list[tuple[Tensor, Tensor]]:
        """Features and logits of each training pass of the student in this step.

        Args:
            calls: Training passes that the step made.

        Raises:
            RuntimeError: It made more or fewer.
        """
        return self._pairs(self._taps, calls)

    def take_teacher(self, calls: int = 1) -> tuple[Tensor, Tensor]:
        """Features and logits of the teacher in the last :meth:`teacher_pass`.

        Args:
            calls: Passes that it made there; their images become one batch.

        Raises:
            RuntimeError: It made more or fewer.
        """
        features, logits = zip(*self._pairs(self._teacher_taps, calls), strict=True)
        return torch.cat(features), torch.cat(logits)

    @contextmanager
    def teacher_pass(self) -> Iterator[None]:
        """``torch.no_grad()`` around the teacher's pass, which is then there to take."""
        with torch.no_grad(), ExitStack() as listening:
            if self.enabled:
                require(len(self._teacher_taps) > 0, "teacher", "the network, given to tap()", None)
                for tap in self._teacher_taps:
                    listening.enter_context(tap)
            yield

    def unheard(self, network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """A pass of the student whose result the script detaches: it is no training pass, though it has a gradient.

        Args:
            network: The student.
            *args: Of the pass.
            **kwargs: Of the pass.

        Returns:
            What the network returns.
        """
        with ExitStack() as paused:
            for tap in self._taps:
                paused.enter_context(tap.paused())
            return network(*args, **kwargs)

    def _pairs(self, taps: list[FeatureTap], calls: int) -> list[tuple[Tensor, Tensor]]:
        features, logits = ([self._shrink(output) for output in tap.take(calls)] for tap in taps)
        return list(zip(features, logits, strict=True))

    def _shrink(self, x: Tensor) -> Tensor:
        if self._stride == 1:
            return x
        size = [-(-side // self._stride) for side in x.shape[2:]]
        return F.interpolate(x, size, mode="bilinear", align_corners=True)
