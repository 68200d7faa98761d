"""Pages of docs/ say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from brpg_lib.output import METRICS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *ROOT.glob("*/README.md"), *(ROOT / "docs").rglob("*.md")]


def test_every_metric_is_explained() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    rows = [f"| `{name}` | {m.meaning} | {m.unit} | {m.phases} |" for name, m in METRICS.items()]
    assert [line for line in page.splitlines() if line.startswith("| `")] == rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_that_pages_name_exist() -> None:
    """Paths in code style that begin with a folder of the repository."""
    known = "|".join(("brpg_lib", "adapters", "examples", "benchmarks", "tests", "docs"))
    for page in PAGES:
        for path in re.findall(rf"`((?:{known})/[\w/.-]*)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
