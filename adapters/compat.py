"""Lets code of older Pythons and torches run on today's: importing it is all.

U2PL's augmentations use ``collections.Iterable``, which Python 3.10 removed. Checkpoints of all three frameworks hold
NumPy scalars, which ``torch.load`` refuses since 2.6 unless they are declared harmless.
"""

from __future__ import annotations

import collections
import collections.abc
from typing import Any

import numpy as np
import torch

if not hasattr(collections, "Iterable"):
    collections.Iterable = collections.abc.Iterable  # type: ignore[attr-defined]

_scalar: Any = np.float64(0).__reduce__()[0]
torch.serialization.add_safe_globals([_scalar, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))])
