"""Settings of all tests: one CPU thread, reproducible hypothesis runs, and which markers need what."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from builders import replace_everywhere
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined
settings.register_profile(
    "suite",
    # On a GPU sizes of their own are kernels of their own, each of which is compiled.
    max_examples=int(os.environ.get("BRPG_EXAMPLES", "8" if torch.cuda.is_available() else "25")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")


def missing(marker: str) -> str | None:
    """Why tests with this marker cannot run here, or None where they can."""
    if marker == "cuda":
        return None if torch.cuda.is_available() else "needs a CUDA device"
    variable = {"data": "BRPG_CAMVID", "upstream": "BRPG_UPSTREAM"}[marker]
    found = Path(os.environ.get(variable, "")).is_dir() and bool(os.environ.get(variable))
    return None if found else f"needs {variable} to name a directory"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker in ("cuda", "data", "upstream"):
        reason = missing(marker)
        if reason is None:
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=["host", "device"])
def everywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything as on the CPU; and as on a device that the host would wait for, where lists have a fixed length."""
    if request.param == "device":
        replace_everywhere(monkeypatch, "on_host", lambda device: False)
