"""What an installation gives, and what it needs."""

from __future__ import annotations

import ast
import graphlib
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


LEVELS = (
    ("version", "beside", "files", "late", "notices", "validation", "keywords", "calls"),
    ("fields", "config", "schedule", "state", "layers"),
    ("forms",),
    ("output", "batches", "checkpoint", "door", "kernels", "ranks"),
    ("collect",),
    ("cluster",),
    ("learn", "timeline", "misuse"),
    ("head_state",),
    ("graphs",),
    ("head",),
    ("settings",),
    ("distributed", "projection", "tap", "inspection", "cli", "completion"),
    ("adapters",),
    ("examples",),
    ("benchmarks",),
)
"""The house from the ground up: a file imports from its own room or from below."""


def imported_by(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, by dotted name without `brpg_lib`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "brpg_lib":
            inside = node.module.split(".")[1:]
            found |= {".".join((*inside, alias.name)) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("brpg_lib.") for a in node.names if a.name.startswith("brpg_lib.")}
    return found


def files() -> dict[str, Path]:
    """All modules of the package by dotted name without `brpg_lib`, a package by its own name."""
    found = {}
    for folder, prefix in ((ROOT / "brpg_lib", ()), *((ROOT / name, (name,)) for name in SUBPACKAGES)):
        for path in folder.rglob("*.py"):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del found[""]
    return found


def imports() -> dict[str, set[str]]:
    """What each module imports, as far as it is a module of the package."""
    known = files()

    def module(name: str) -> str:
        while name and name not in known:
            name = name.rpartition(".")[0]  # a name that a module defines
        return name

    return {own: {module(name) for name in imported_by(path)} - {"", own} for own, path in known.items()}


def test_no_file_imports_from_above() -> None:
    level = {room: index for index, rooms in enumerate(LEVELS) for room in rooms}
    for own, others in imports().items():
        for other in others:
            rooms = own.split(".")[0], other.split(".")[0]
            below = rooms[0] == rooms[1] or level[rooms[1]] < level[rooms[0]] or rooms[0] == "cli"
            same_level = level[rooms[0]] == level[rooms[1]] and rooms[0] not in ("collect", "cluster", "learn")
            assert below or same_level, f"{own} imports {other}"


def test_there_is_no_circle_of_imports() -> None:
    graph = graphlib.TopologicalSorter(imports())
    graph.prepare()  # raises CycleError, which names the modules


def test_files_and_functions_are_short() -> None:
    for path in (*(ROOT / "brpg_lib").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")):
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                documented = ast.get_docstring(node, clean=False) or ""
                lines = node.end_lineno - node.lineno + 1 - documented.count("\n")
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"
    assert (ROOT / "brpg_lib/head.py").read_text().count("\n") <= 250


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


@pytest.mark.parametrize("arguments", [["--unknown"], ["--unknown", "demo"]])
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
