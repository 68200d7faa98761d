"""What an installation gives, and what it needs."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import brpg_lib
from brpg_lib.cli import main

ROOT = Path(__file__).parent.parent
PUBLIC = ("AdaptiveSplitter", "BRPGConfig", "ConfidenceSampler", "FeatureQueue", "FeatureTap", "HeadOutput")
PUBLIC += ("LabeledBatch", "OnlineClusterer", "Phase", "PrototypeBank", "PrototypeContrastiveLoss", "PrototypeHead")
PUBLIC += ("Prototypes", "ProjectionHead", "Samples", "Schedule", "Split", "UnlabeledBatch")
PUBLIC += ("prototype_contrastive_loss", "__version__")
SUBPACKAGES = ("adapters", "benchmarks", "examples")

SUBPACKAGE_FILES = f"import importlib\nfor n in {SUBPACKAGES}: print(importlib.import_module('brpg_lib.' + n).__file__)"
ONLY_THESE = """
import sys, time
import torch, numpy, einops
before, start = set(sys.modules), time.perf_counter()
import brpg_lib
seconds = time.perf_counter() - start
new = {name.split(".")[0] for name in set(sys.modules) - before}
strangers = new - {"brpg_lib", "torch", "numpy", "einops"} - set(sys.stdlib_module_names)
assert not strangers, strangers
assert seconds < 5, seconds
print(brpg_lib.__file__)
"""


def python(code: str, path: Path, folder: Path) -> str:
    """Standard output of code run in another process that finds packages in `path` first."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names() -> None:
    assert set(PUBLIC) <= set(brpg_lib.__all__)
    for name in brpg_lib.__all__:
        assert getattr(brpg_lib, name) is not None
    scope: dict[str, object] = {}
    exec("from brpg_lib import *", scope)
    assert set(PUBLIC) <= scope.keys()


@pytest.mark.parametrize("name", [n for n in PUBLIC if n != "__version__"])
def test_public_names_are_documented(name: str) -> None:
    text = getattr(brpg_lib, name).__doc__
    assert text
    assert not text.startswith(f"{name}("), "the text that dataclass or NamedTuple makes up"


def test_importing_needs_torch_numpy_and_einops_only(tmp_path: Path) -> None:
    found = python(ONLY_THESE, ROOT, tmp_path).strip()
    assert Path(found) == ROOT / "brpg_lib/__init__.py"


def test_subpackages_of_the_checkout(tmp_path: Path) -> None:
    found = python(SUBPACKAGE_FILES, ROOT, tmp_path).split()
    assert [Path(file) for file in found] == [ROOT / name / "__init__.py" for name in SUBPACKAGES]


@pytest.mark.parametrize("name", ["tests", "pyproject", "docs", "brpg_lib"])
def test_nothing_else_of_the_checkout_is_a_subpackage(name: str, tmp_path: Path) -> None:
    code = f"import importlib.util, brpg_lib; print(importlib.util.find_spec('brpg_lib.{name}'))"
    assert python(code, ROOT, tmp_path).strip() == "None"


def test_no_file_of_the_package_imports_upwards() -> None:
    """A module imports only from those nearer the ground."""
    order = (
        "version",
        "beside",
        "notices",
        "validation",
        "schedule",
        "config",
        "checkpoint",
        "files",
        "state",
        "kernels",
        "distributed",
        "exchange",
        "batches",
    )
    order += (
        "diagnostics",
        "limits",
        "points",
        "queue",
        "sampler",
        "splitter",
        "clusterer",
        "bank",
        "loss",
        "projection",
        "head",
        "tap",
        "cli",
    )
    for level, name in enumerate(order):
        source = ROOT / "brpg_lib" / name
        files = source.glob("*.py") if source.is_dir() else [source.with_suffix(".py")]
        text = "".join(file.read_text() for file in files)
        for above in order[level + 1 :]:
            assert f"from brpg_lib.{above} " not in text, f"{name} imports {above}"
            assert f"from brpg_lib import {above}" not in text, f"{name} imports {above}"
    assert {path.stem for path in (ROOT / "brpg_lib").glob("*.py")} - {"__init__"} <= set(order)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built without network from a copy of the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    hidden = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "tests", "__pycache__", "runs")
    shutil.copytree(ROOT, folder / "source", ignore=hidden)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), "source"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    assert built.name == f"brpg_lib-{brpg_lib.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_module(wheel: Path) -> None:
    def modules(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*.py") if "__pycache__" not in path.parts}

    expected = {Path("brpg_lib") / path for path in modules(ROOT / "brpg_lib")}
    for name in SUBPACKAGES:
        expected |= {Path("brpg_lib") / name / path for path in modules(ROOT / name)}
    assert modules(wheel) == expected
    assert (wheel / "brpg_lib/py.typed").is_file()


def test_the_wheel_has_one_top_level_package(wheel: Path) -> None:
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == {"brpg_lib"}


def test_the_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    assert Path(python(ONLY_THESE, wheel, tmp_path).strip()) == wheel / "brpg_lib/__init__.py"
    found = python(SUBPACKAGE_FILES, wheel, tmp_path).split()
    assert [Path(file) for file in found] == [wheel / "brpg_lib" / name / "__init__.py" for name in SUBPACKAGES]


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    text = metadata.read_text()
    needed = [line for line in text.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert [line.split()[1].split(">")[0] for line in needed] == ["torch", "numpy", "einops"]
    assert "brpg = brpg_lib.cli:main" in (metadata.parent / "entry_points.txt").read_text()
    assert list(metadata.parent.rglob("LICENSE"))


def test_version_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"brpg-lib {brpg_lib.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["unknown"]])
def test_wrong_use_of_the_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: brpg" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'rich'", name="rich")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert main(["demo"]) == 2
    assert "brpg demo needs rich: pip install 'brpg-lib[examples]'" in capsys.readouterr().err
