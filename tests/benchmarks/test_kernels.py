"""Kernels compiled for GPUs that are not here stay within their budget; the interpreter would accept more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from packages import TRITON

from brpg_lib.benchmarks import kernels

NEEDED = pytest.mark.skipif(
    sys.platform != "linux" or bool(TRITON), reason=TRITON or "needs the compiler that Triton has on Linux"
)
SHARED = 114_688
"""Bytes that a program on an A100 or H100 may have, and leave room for a second one."""


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All cases, from a process of its own: here kernels may be interpreted."""
    path = tmp_path_factory.mktemp("kernels") / "kernels.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "brpg_lib.benchmarks.kernels", "--json", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def compiled(everything: dict[str, Any]) -> list[dict[str, Any]]:
    """The k-means passes."""
    found: list[dict[str, Any]] = everything["passes"]
    return found


def name_of(case: dict[str, Any]) -> str:
    fields = {name: case[name] for name in ("rows", "dim", "clusters", "indexed", "weighted", "capability")}
    return kernels.Case(**fields).name


@NEEDED
def test_every_kernel_fits_its_gpu(compiled: list[dict[str, Any]]) -> None:
    assert {case["capability"] for case in compiled} == {75, 80, 89, 90}
    for case in compiled:
        # The one with weights runs once per clustering.
        most = 128 if case["weighted"] and case["kernel"] == "many_clusters" else 0
        assert case["spills"] <= most, name_of(case)
        assert case["registers"] <= 255, name_of(case)
        assert case["shared"] <= SHARED, name_of(case)


@NEEDED
def test_passes_over_the_queues_are_bound_by_memory(compiled: list[dict[str, Any]]) -> None:
    """Instructions take less than 1.5 times what reading the rows takes, with many clusters 2 times."""
    for case in compiled:
        if case["weighted"]:
            continue
        assert case["instructions"] > 100, f"no loop found: {name_of(case)}"
        most = 1.0 if case["clusters"] <= 4 else 2.0
        assert 0.1 < case["floors"] <= most, name_of(case)
        if case["rows"] == "fp32" and case["dim"] == 256 and not case["indexed"]:
            per_8_kb = case["instructions"] * case["warps"] * 8192 / case["rounds_bytes"]
            assert per_8_kb <= {1: 450, 2: 760, 3: 1100, 4: 1450}.get(case["clusters"], 1900), name_of(case)


@NEEDED
def test_the_kernels_of_the_steps_fit(everything: dict[str, Any]) -> None:
    found = everything["steps"]
    assert len(found) == 4 * 5 + 2 * 4 + 4 * (2 + 4 + 5 + 4 + 2) + 2 * (4 + 3 + 2 + 2)
    for name, kernel in found.items():
        assert kernel["spills"] == 0, name
        assert kernel["registers"] <= 255, name
        assert kernel["shared"] <= 48 * 1024, f"{name}: every GPU has that much"


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> None:
        raise ImportError("No module named 'triton'")

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernels, "cases", missing)
    assert kernels.main([]) == 2
    assert "pip install triton" in capsys.readouterr().err
