"""Feature maps out of a network that does not return them."""

from __future__ import annotations

import copy
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.hooks import RemovableHandle

from brpg_lib.calls import in_backward_pass, is_replica
from brpg_lib.keywords import with_checked_keywords
from brpg_lib.layers import layer_of, parallel_around
from brpg_lib.validation import require_instance, require_integer

MAX_CALLS = 64
"""Outputs kept before a tap that nobody empties complains."""


@with_checked_keywords
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

    In a part under ``torch.utils.checkpoint`` the layer is called again in the backward pass, which does not count.
    What replicas of ``nn.DataParallel`` put out becomes one tensor, as their logits do. A copy of the network does not
    feed the tap; a copy of an object that holds the network and its taps has taps of its own.

    Args:
        module: The network: bare, or in DistributedDataParallel, DataParallel, ``torch.compile``, or several of them.
        path: Dotted name of the layer, as in ``module.named_modules()`` of the bare network. Its output must be one
            tensor.
        grad: ``False`` collects the outputs *without* a gradient instead: for a teacher, with the ``with`` block around
            its forward pass.
        input: ``True`` collects what goes into the layer, its first argument: for features of a layer that the network
            also calls for other things.

    Raises:
        ValueError: ``module`` has no such layer; the message lists names like it.
        RuntimeError: (When the layer is called.) It lies where no features with a gradient can be had, such as in a
            part under ``torch.utils.checkpoint`` with ``use_reentrant=True``.
    """

    def __init__(self, module: nn.Module, path: str, *, grad: bool = True, input: bool = False) -> None:
        require_instance("module", module, nn.Module, "an nn.Module")
        self.path, self.grad, self.input = path, grad, input
        self._layer = layer_of(module, path)
        self._parallel = parallel_around(module, self._layer)
        self._compiled = any(_is_compiled(part) for part in module.modules())
        self._handles: list[RemovableHandle] = []
        self._forget()

    def _forget(self) -> None:
        self._outputs: list[tuple[Tensor, int | None]] = []
        self._pieces: list[tuple[int, Tensor, int]] = []
        self._others = 0

    def open(self) -> FeatureTap:
        """Start collecting, from nothing; as ``with``, for a tap that stays open as long as the network lives."""
        self._listen()
        self._forget()
        return self

    def _listen(self) -> None:
        _let_compiled_code_see_hooks()
        if self._handles:
            return
        self._handles.append(self._layer.register_forward_hook(_Listener(self, "_hear")))
        if self._parallel is not None:
            self._handles.append(self._parallel.register_forward_pre_hook(_Listener(self, "_begin")))
            self._handles.append(self._parallel.register_forward_hook(_Listener(self, "_put_together")))

    def close(self) -> None:
        """Stop collecting. What was collected can still be taken."""
        _let_compiled_code_see_hooks()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

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
        listening = bool(self._handles)
        self.close()
        try:
            yield
        finally:
            if listening:
                self._listen()

    def take(self, calls: int) -> list[Tensor]:
        """The outputs since the last ``take``, in the order of the calls, and empty the tap.

        Args:
            calls: Forward passes of the step that must have gone through the layer.

        Returns:
            ``calls`` tensors, attached to the graph.

        Raises:
            RuntimeError: The layer was called more or less often, or a layer after it overwrote its output in place.
        """
        calls = require_integer("calls", calls, 1)
        outputs, others = self._outputs, self._others
        self._forget()
        if len(outputs) != calls:
            kind = "with" if self.grad else "without"
            hint = self._hint(len(outputs), calls, others)
            raise RuntimeError(
                f"{self}: expected {calls} calls {kind} gradient since the last take, saw {len(outputs)}{hint}"
            )
        for output, version in outputs:
            self._require_untouched(output, version)
        return [output for output, _ in outputs]

    def _hint(self, seen: int, calls: int, others: int) -> str:
        """What may be wrong, where the count is."""
        if seen > calls:
            called_again = "; is it under torch.utils.checkpoint in compiled code? Then tap a layer outside"
            return called_again if self._compiled else "; take() in every step, also in those without the head"
        if not seen and not self._handles:
            return "; the tap is closed: call open(), or use it in a with statement around the passes"
        if others and self.grad:
            return f", and {others} without: under torch.no_grad(), or frozen; grad=False is for a teacher's features"
        if others:
            return f", and {others} with gradient: is the forward pass under torch.no_grad()?"
        if not seen and self._compiled:
            return "; code compiled before the tap was made does not know it: call torch.compiler.reset() once"
        return ""

    def _require_untouched(self, output: Tensor, version: int | None) -> None:
        if version is not None and output._version != version:
            raise RuntimeError(f"{self}: a later layer overwrote the output in place; tap that layer instead")

    def _hear(self, layer: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        """Forward hook of the layer, and of its replicas in threads of their own."""
        output = (*inputs, None)[0] if self.input else output
        if not isinstance(output, Tensor):
            kind = "first input is a" if self.input else "output is one"
            raise TypeError(
                f"{self}: expected a layer whose {kind} tensor, found {type(output).__name__}; tap one inside it"
            )
        if torch.compiler.is_compiling():  # what follows asks for more than compiled code can tell
            if output.requires_grad == self.grad:
                self._keep(output, None)  # compiled graphs count versions their own way, and overwrite nothing
            return
        if in_backward_pass():
            return  # it was called before
        if output.requires_grad != self.grad:
            if self.grad and not torch.is_grad_enabled() and _in_custom_function():
                raise RuntimeError(
                    f"{self}: the layer is called without a graph, to be called again in the backward pass, as "
                    "torch.utils.checkpoint does with use_reentrant=True: pass use_reentrant=False, or tap a layer "
                    "outside that part"
                )
            self._others += 1
        elif not is_replica(layer):
            self._keep(output, output._version)
        elif self._parallel is None:
            raise RuntimeError(
                f"{self}: replicas of nn.DataParallel call the layer; make the tap of the nn.DataParallel module: "
                f"FeatureTap(parallel, {self.path!r})"
            )
        else:
            self._pieces.append((output.get_device(), output, output._version))

    def _keep(self, output: Tensor, version: int | None) -> None:
        if len(self._outputs) == MAX_CALLS:
            self._forget()
            raise RuntimeError(f"{self}: {MAX_CALLS} calls and no take: call take() in each step, or close()")
        self._outputs.append((output, version))

    def _begin(self, parallel: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Before a pass of nn.DataParallel: pieces that are there are of a pass that failed."""
        self._pieces.clear()

    def _put_together(self, parallel: Any, inputs: tuple[Any, ...], output: object) -> None:
        """After a pass of nn.DataParallel: the pieces of each call become one tensor, as it does with the logits."""
        by_device: dict[int, list[Tensor]] = {}
        for device, piece, version in self._pieces:
            self._require_untouched(piece, version)
            by_device.setdefault(device, []).append(piece)
        self._pieces.clear()
        if not by_device:  # the layer itself was called, on a single device
            return
        in_order = [by_device[device] for device in parallel.device_ids if device in by_device]
        if len({len(pieces) for pieces in in_order}) > 1:
            raise RuntimeError(f"{self}: not all replicas of nn.DataParallel called the layer equally often")
        for pieces in zip(*in_order, strict=True):
            whole = torch.cat([piece.to(parallel.output_device) for piece in pieces], dim=parallel.dim)
            self._keep(whole, whole._version)

    def __enter__(self) -> FeatureTap:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureTap:
        """A tap of the copied layer; a teacher copied out of nn.DataParallel is in none."""
        twin = self.__class__.__new__(self.__class__)
        inside = id(self._layer) not in memo or id(self._parallel) in memo
        memo[id(self)] = twin
        state = self.__getstate__() | ({} if inside else {"_parallel": None})
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in state.items()})
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a step."""
        return self.__dict__ | {"_outputs": [], "_pieces": [], "_others": 0}

    def __repr__(self) -> str:
        return f"FeatureTap({self.path!r})"


class _Listener:
    """A hook that calls a method of a tap as long as somebody holds that tap.

    Whoever copies or saves a network copies its hooks, and so a tap; but that one is let go of with the copying.
    """

    def __init__(self, tap: FeatureTap | None, method: str) -> None:
        self.__setstate__((tap, method))

    def __call__(self, *arguments: Any) -> None:
        tap = self._tap()
        if tap is not None:
            getattr(tap, self._method)(*arguments)

    def __getstate__(self) -> tuple[FeatureTap | None, str]:
        return self._tap(), self._method

    def __setstate__(self, state: tuple[FeatureTap | None, str]) -> None:
        tap, self._method = state
        self._tap: Callable[[], FeatureTap | None] = _nobody if tap is None else weakref.ref(tap)


def _nobody() -> None:
    return None


def _is_compiled(part: nn.Module) -> bool:
    return hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None


def _let_compiled_code_see_hooks() -> None:
    """Compiled code looks for hooks it was compiled with, and from here on for those it was compiled without."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is not None and hasattr(dynamo.config, "skip_nnmodule_hook_guards"):
        dynamo.config.skip_nnmodule_hook_guards = False


def _in_custom_function() -> bool:
    """Whether a ``torch.autograd.Function`` runs that is to have a gradient, as reentrant checkpointing is one."""
    contexts = (value for value in _first_arguments_of_forwards() if isinstance(value, FunctionCtx))
    return any(getattr(context, "next_functions", ()) for context in contexts)


def _first_arguments_of_forwards() -> Iterator[object]:
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount:
            yield frame.f_locals.get(code.co_varnames[0])
        frame = frame.f_back
