"""CUDA tensors that have a shape and a device but no values: they show, without a GPU, what would wait for one.

Whatever needs a value on the host (``.item()``, boolean indexing, ``nonzero``) raises by itself. A copy between host
and device does not; :class:`NoCopies` raises for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from brpg_lib.kernels import fused, lloyd

CUDA = torch.device("cuda")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
ATEN = torch.ops.aten
FREE = {
    *(ATEN.empty, ATEN.empty_like, ATEN.empty_strided, ATEN.new_empty, ATEN.new_empty_strided),
    *(
        ATEN.detach,
        ATEN.alias,
        ATEN._reshape_alias,
        ATEN._unsafe_view,
        ATEN.lift_fresh,
        ATEN.resolve_conj,
        ATEN.resolve_neg,
    ),
}
"""Operators that start no kernel, beside those that torch calls views."""

needs_fake_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < "2.6", reason="this torch needs a GPU for fake CUDA tensors"
)


class DeviceCopyError(Exception):
    """Values went from the host to the device or back."""


class NoCopies(TorchDispatchMode):
    """Raises :class:`DeviceCopyError` where values go from one device to another; counts what computes.

    Attributes:
        launches: How often each operator ran that starts a kernel; views and empty tensors are free.

    Args:
        device: Whose launches count.
    """

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self.device = device
        self.launches: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All launches."""
        return sum(self.launches.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator."""
        out = func(*args, **(kwargs or {}))
        computes = func.namespace == "aten" and not func.is_view and func.overloadpacket not in FREE
        if computes and any(isinstance(x, Tensor) and x.device.type == self.device for x in tree_leaves(out)):
            self.launches[str(func.overloadpacket).removeprefix("aten.")] += 1
        if func in COPIES:
            devices = {x.device.type for x in [*tree_leaves((args, kwargs)), out] if isinstance(x, Tensor)}
            if len(devices) > 1:
                raise DeviceCopyError(f"{func} between {' and '.join(sorted(devices))}")
        return out


class _Generator(torch.Generator):
    """Draws nothing; says that it is where it was asked to be."""

    device = CUDA

    def __new__(cls, device: Any = "cpu") -> _Generator:
        """Make one."""
        return super().__new__(cls, "cpu")


def _move(module: nn.Module, device: Any, **_: Any) -> nn.Module:
    """What ``module.to(device)`` does, for tensors without values: torch's own wants to exchange their storage."""

    def moved(value: Tensor) -> Tensor:
        return torch.empty(value.shape, dtype=value.dtype, device=device)

    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and value.device.type != device.type:
                part._parameters[name] = nn.Parameter(moved(value), value.requires_grad)
        for values in (part._buffers, {name: part.__dict__[name] for name in getattr(part, "_persistent", ())}):
            for name, value in values.items():
                if value is not None and value.device.type != device.type:
                    (part._buffers if name in part._buffers else part.__dict__)[name] = moved(value)
    return module


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Inside, tensors have no values, and may be on CUDA whether there is such a device or not."""
    # Whether kernels run is remembered per device: nothing must be remembered of a device that is none.
    with (
        patch.object(fused, "_works", lambda device: False),
        patch.object(lloyd, "launches", lambda *_: False),
        FakeTensorMode(),
        patch("torch.Generator", _Generator),
        patch.object(nn.Module, "to", _move),
    ):
        yield CUDA
