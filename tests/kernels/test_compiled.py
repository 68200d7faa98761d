"""The pool of compiled loops beside torch's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import torch
torch.set_num_threads(1)
import brpg_lib.kernels.lloyd.numba_lloyd
import numba
print(numba.config.NUMBA_NUM_THREADS)
"""


def test_the_pool_is_no_larger_than_torch_s() -> None:
    """Or idle threads would spin, and several processes on one machine would crawl."""
    pytest.importorskip("numba")
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "1", done.stderr
