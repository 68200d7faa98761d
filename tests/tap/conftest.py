"""What the tests of taps share."""

from __future__ import annotations

import pytest
import torch
from tapped import Net


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()
