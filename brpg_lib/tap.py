"""Feature maps out of a network that does not return them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from brpg_lib.validation import require_instance, require_integer

WRAPPERS = ("module", "_orig_mod")
"""Attributes under which DistributedDataParallel and torch.compile keep the network they wrap."""

MAX_CALLS = 64
"""Outputs kept before a tap that nobody empties complains."""


class FeatureTap:
    """Collects what one layer puts out in the training passes of a step.

    A forward hook with rules: of all calls it keeps those whose output requires a gradient, which are exactly the
    student's training passes; evaluation, pseudo-labeling under ``torch.no_grad()`` and frozen teachers leave no trace.
    ``take`` hands out one step's maps and empties the tap. ::

        with FeatureTap(model, "classifier.4") as tap:
            for images, labels in loader:
                logits = model(images)
                (features,) = tap.take(1)

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    >>> with FeatureTap(network, "1") as tap:
    ...     logits = network(torch.rand(4, 3, 5, 5))
    ...     (features,) = tap.take(1)
    >>> features.shape
    torch.Size([4, 8, 5, 5])

    Args:
        module: The network; wrapped by DistributedDataParallel, ``torch.compile`` or both, or bare.
        path: Dotted name of the layer, as in ``module.named_modules()`` of the bare network. Its output must be one
            tensor. Choose a layer outside gradient checkpointing, which calls it again in the backward pass.
        grad: ``False`` collects the outputs *without* a gradient instead: for a teacher, with the ``with`` block around
            its forward pass.

    Raises:
        ValueError: ``module`` has no such layer; the message lists names like it.
    """

    def __init__(self, module: nn.Module, path: str, *, grad: bool = True) -> None:
        require_instance(
            "module",
            module,
            nn.Module,
            "an nn.Module",
        )
        self.path, self.grad = path, grad
        self._layer = _layer(module, path)
        self._handle: RemovableHandle | None = None
        self._outputs: list[tuple[Tensor, int | None]] = []

    def open(self) -> FeatureTap:
        """Start collecting, from nothing; as ``with``, for a tap that stays open as long as the network lives."""
        if self._handle is None:
            self._handle = self._layer.register_forward_hook(self._collect)
        self._outputs.clear()
        return self

    def close(self) -> None:
        """Stop collecting. What was collected can still be taken."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Collect nothing within; what was collected before stays.

        >>> layer = nn.Linear(2, 2)
        >>> with FeatureTap(nn.Sequential(layer), "0") as tap:
        ...     kept = layer(torch.rand(1, 2))
        ...     with tap.paused():
        ...         unheard = layer(torch.rand(1, 2))
        ...     len(tap.take(1))
        1
        """
        listening = self._handle is not None
        self.close()
        try:
            yield
        finally:
            if listening:
                self._handle = self._layer.register_forward_hook(self._collect)

    def take(self, calls: int) -> list[Tensor]:
        """The outputs since the last ``take``, in the order of the calls, and empty the tap.

        Args:
            calls: Forward passes of the step that must have gone through the layer.

        Returns:
            ``calls`` tensors, attached to the graph.

        Raises:
            RuntimeError: The layer was called more or less often, or a layer after it overwrote its output in place.
        """
        require_integer("calls", calls, 1)
        outputs = self._outputs.copy()
        self._outputs.clear()
        if len(outputs) != calls:
            kind = "with" if self.grad else "without"
            hint = "" if self._handle or outputs else "; the tap is closed"
            raise RuntimeError(
                f"{self}: expected {calls} calls {kind} gradient since the last take, saw {len(outputs)}{hint}"
            )
        for output, version in outputs:
            if version is not None and output._version != version:
                raise RuntimeError(f"{self}: a later layer overwrote the output in place; tap that layer instead")
        return [output for output, _ in outputs]

    def _collect(self, layer: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if layer is not self._layer:
            return
        if not isinstance(output, Tensor):
            raise TypeError(f"{self}: expected a layer whose output is one tensor, found {type(output).__name__}")
        if output.requires_grad != self.grad:
            return
        if len(self._outputs) == MAX_CALLS:
            self._outputs.clear()
            raise RuntimeError(f"{self}: {MAX_CALLS} calls and no take: call take() in each step, or close()")
        # Compiled graphs count versions their own way, and never overwrite what they return.
        version = None if torch.compiler.is_compiling() else output._version
        self._outputs.append((output, version))

    def __enter__(self) -> FeatureTap:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureTap:
        """Itself: a copied network (an EMA teacher, say) brings the hook along, but feeds no tap."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A network saved whole brings the hook along, but no graph."""
        return self.__dict__ | {"_outputs": []}

    def __repr__(self) -> str:
        return f"FeatureTap({self.path!r})"


def _layer(module: nn.Module, path: str) -> nn.Module:
    bare = module
    while True:
        layers: dict[str, nn.Module] = {name: layer for name, layer in bare.named_modules() if name}
        if path in layers:
            return layers[path]
        inner = next((child for name, child in bare.named_children() if name in WRAPPERS), None)
        if inner is None:
            break
        bare = inner
    near = difflib.get_close_matches(path, layers, cutoff=0.3) or [name for name, _ in bare.named_children()]
    raise ValueError(f"path: expected a layer of {type(bare).__name__}, such as {', '.join(near)}, found {path!r}")
