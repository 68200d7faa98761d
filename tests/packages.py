"""Which of the installed packages tests can use."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version

import pytest
import torch

from brpg_lib.kernels import lloyd


def installed_version(package: str) -> tuple[int, ...]:
    """Its first two numbers."""
    return tuple(int(number) for number in version(package).split(".")[:2])


def _triton_missing() -> str:
    """Why Triton's kernels cannot be tested, or nothing."""
    if not lloyd.installed("triton"):
        return "needs a (recent) triton"
    if not torch.cuda.is_available() and installed_version("triton") < (3, 2):
        return "Triton's interpreter before 3.2 writes nothing with NumPy 2"
    return ""


def _transformers_missing() -> str:
    """Why transformers cannot be used, or nothing."""
    if importlib.util.find_spec("transformers") is None:
        return "needs transformers"
    from transformers.utils import is_torch_available

    return "" if is_torch_available() else f"this transformers refuses torch {torch.__version__}, and prints so"


TRITON, TRANSFORMERS = _triton_missing(), _transformers_missing()
needs_triton = pytest.mark.skipif(bool(TRITON), reason=TRITON)
needs_transformers = pytest.mark.skipif(bool(TRANSFORMERS), reason=TRANSFORMERS)
needs_torch_2_5 = pytest.mark.skipif(
    installed_version("torch") < (2, 5),
    reason="torch 2.4 reads no random states of NumPy, and does not tell its default device once one was set",
)
needs_export = pytest.mark.skipif(
    installed_version("torch") < (2, 6), reason="torch.export before 2.6 knows no autocast"
)
