"""The documentation is a site: strict, complete, and with all pages that the README leads to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT

import brpg_lib

for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr  # a broken link or anchor, a page that is in no menu
    return folder


def test_every_page_is_there(site: Path) -> None:
    names = {path.stem for path in site.glob("*.html")}
    own = {page.stem for page in PAGES if page.parent.name == "docs"}
    assert own | {"index", "adapters", "benchmarks", "examples", "changes", "contributing", "security"} <= names


def test_every_public_name_is_described(site: Path) -> None:
    reference = (site / "reference.html").read_text()
    described = set(re.findall(r'id="brpg_lib\.(\w+)"', reference))
    assert set(brpg_lib.__all__) - {"__version__"} <= described
    assert "&gt;&gt;&gt;" in reference
    assert not re.search(r"<blockquote>", reference), "an example that became a quotation"


def test_links_stay_within_the_site_where_it_has_the_page(site: Path) -> None:
    links = re.findall(r'href="([^"]*)"', (site / "index.html").read_text())
    assert "start.html" in links
    assert [link for link in links if "/blob/main/docs/" in link] == []
    assert (site / "pictures/idea.png").is_file()


def test_equations_need_no_script(site: Path) -> None:
    assert (site / "parts.html").read_text().count("<math ") >= 7


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?://[^"]*"', page.read_text()) == [], page.name
