"""The notebook runs from top to bottom, and shows what it showed when it was written."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pages import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
PATH = ROOT / "examples/tour.ipynb"


def pictures(notebook: Any) -> list[int]:
    """Pictures of each cell of code."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [sum("image/jpeg" in output.get("data", {}) for output in cell.outputs) for cell in cells]


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_it_runs() -> None:
    written = nbformat.read(PATH, 4)
    notebook = nbformat.read(PATH, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()  # raises where a cell does
    assert pictures(notebook) == pictures(written)
    assert sum(pictures(written)) == 5
    near = [[int(share) for share in re.findall(r"(\d+)% wrong near", printed(book))] for book in (written, notebook)]
    for shares in near:
        assert len(shares) == 3
        assert shares[-1] < 0.75 * shares[0], "boundaries are better at the end"


def test_it_is_small_and_says_nothing_of_a_machine() -> None:
    text = PATH.read_text()
    assert len(text) < 600_000
    assert not re.search(r"/(?:home|work|root|tmp|Users)/", text)
