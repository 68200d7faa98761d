"""What would be uploaded: the source distribution has all that the tests need, and nothing warns."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from pages import PAGES, REPOSITORY, ROOT

import brpg_lib

NEEDED = ("Makefile", "CHANGELOG.md", "LICENSE", "CITATION.cff", "noxfile.py", "mkdocs.yml", "pyproject.toml")
NEEDED += ("tests/conftest.py", "tests/pages.py", "tests/golden/cluster.npz", "tests/records/checkpoint_3.pt")
NEEDED += ("tests/standins/u2pl/train_semi.py", "docs/hooks.py", "docs/pictures/idea.png", "examples/tour.ipynb")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The unpacked source distribution and wheel built from it, and what the build said."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("distribution")
    hidden = shutil.ignore_patterns(
        ".[!gp]*", ".pytest*", ".git", "build", "dist", "site", "runs", "__pycache__", "*.egg-info"
    )
    shutil.copytree(ROOT, folder / "source", ignore=hidden)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), "source"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder / "unpacked", filter="data")
    return folder, done.stdout + done.stderr


def test_the_source_distribution_is_complete(built: tuple[Path, str]) -> None:
    root = built[0] / f"unpacked/brpg_lib-{brpg_lib.__version__}"
    assert [name for name in NEEDED if not (root / name).is_file()] == []
    assert [page for page in PAGES if not (root / page.relative_to(ROOT)).is_file()] == []
    for folder in ("brpg_lib", "adapters", "benchmarks", "examples", "tests", "docs"):
        own = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.*") if path.is_file()}
        own = {path for path in own if "__pycache__" not in path.parts and path.suffix != ".pyc"}
        assert {path for path in own if not (root / path).is_file()} == set()


def test_nothing_warns(built: tuple[Path, str]) -> None:
    words = (
        "Package would be ignored",
        "SetuptoolsDeprecationWarning",
        "is absent from the `packages`",
        "no files found",
    )
    assert [line for line in built[1].splitlines() if any(word in line for word in words)] == []


def test_twine_is_content(built: tuple[Path, str]) -> None:
    if importlib.util.find_spec("twine") is None:
        pytest.skip("needs twine")
    files = [str(path) for path in (built[0] / "dist").iterdir()]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {brpg_lib.__version__}\n" in text
    assert f'repository-code: "{REPOSITORY}"' in text


def test_the_recipes_are_installed(built: tuple[Path, str]) -> None:
    (wheel,) = (built[0] / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "examples/training/configs").rglob("*.yaml"):
        assert f"brpg_lib/examples/{path.relative_to(ROOT / 'examples').as_posix()}" in names
