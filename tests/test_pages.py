"""Pages of the documentation say what the code does, and their examples run."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import PAGES, ROOT, STARTS, blocks, targets

import brpg_lib
from brpg_lib.cli import main
from brpg_lib.output import METRICS

FROM = "# from "
"""How a block begins that shows lines of a file."""
WITH_EXAMPLES = [page for page in PAGES if page.parent.name == "docs" and blocks(page, "python")]

FOLDERS = ("brpg_lib", "adapters", "examples", "benchmarks", "tests", "docs", ".github")
FILES = ["/" + path.relative_to(ROOT).as_posix() for name in FOLDERS for path in (ROOT / name).rglob("*")]
FILES += ["/" + path.name for path in ROOT.iterdir()]
OF_READERS = {"SCRIPT_brpg.py", "mine.py", "recipe.yaml"}
"""Files that pages name and that readers have."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name_of)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    for block in blocks(page, "python"):
        if block.startswith(FROM):
            first, lines = block.split("\n", 1)
            assert lines in (ROOT / first.removeprefix(FROM)).read_text(), first
        else:
            exec(compile(textwrap.dedent(block), name_of(page), "exec"), scope)


def test_the_table_for_compare_can_be_read(tmp_path: Path) -> None:
    (table,) = [block for block in blocks(ROOT / "docs/compare.md", "text") if block.startswith("seed,")]
    (tmp_path / "runs.csv").write_text(table)
    assert main(["compare", str(tmp_path / "runs.csv"), "--out", str(tmp_path / "page")]) == 0
    assert "+1.4" in (tmp_path / "page/compare.md").read_text()


def test_every_metric_is_explained() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    rows = [f"| `{name}` | {m.meaning} | {m.unit} | {m.phases} |" for name, m in METRICS.items()]
    assert [line for line in page.splitlines() if line.startswith("| `")] == rows
    titles = re.findall(r"^### (.*?)\{", page, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(titles))) == sorted(METRICS)
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        assert "- **Healthy**" in section, section.splitlines()[0]


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference.md").read_text()
    names = set(brpg_lib.__all__) - {"__version__"}
    assert {name for name in names if f"\n::: brpg_lib.{name}\n" not in page} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in targets(page):
        path = target.partition("#")[0]
        for start in STARTS:
            if path.startswith(start):
                assert (ROOT / path.removeprefix(start)).exists(), target
        if path and not re.match("[a-z]+:", path):
            assert (page.parent / path).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_pages_name_exist(page: Path) -> None:
    """Paths in code style, whole or their last parts."""
    text = page.read_text()
    for path in re.findall(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), path
    for part in set(re.findall(r"`([\w./-]+\.(?:py|yaml|ipynb|toml|md))`", text)) - OF_READERS:
        assert part.startswith("runs/") or any(path.endswith("/" + part) for path in FILES), part
