"""Sessions that CI runs, on any machine: ``pip install nox``, then ``nox --list``."""

from __future__ import annotations

import nox

nox.options.sessions = ["core", "docs", "package"]
nox.options.default_venv_backend = "venv"
OLDEST, NEWEST = "2.4.1", "newest"
PYTHONS = {OLDEST: ("3.10", "3.11", "3.12"), NEWEST: ("3.10", "3.11", "3.12", "3.13", "3.14")}
"""Of each torch; 2.4 was not built for later ones."""
MATRIX = [nox.param(python, torch, id=f"{python}-{torch}") for torch, all_ in PYTHONS.items() for python in all_]
CORE = """
import torch, brpg_lib
head = brpg_lib.PrototypeHead(2, 4, brpg_lib.Schedule(warmup=0, collect=1, total=9))
labels = torch.tensor([0, 1]).repeat(32).view(1, 8, 8)
logits = 9.0 * torch.nn.functional.one_hot(labels, 2).movedim(3, 1)
for _ in range(3):
    out = head(brpg_lib.LabeledBatch(features=torch.rand(1, 4, 8, 8), logits=logits, labels=labels))
assert out.phase is brpg_lib.Phase.LEARN and out.loss > 0
"""


@nox.session
@nox.parametrize("python,torch", MATRIX)
def tests(session: nox.Session, torch: str) -> None:
    """All tests with one Python and one torch."""
    install(session, ".[dev]", torch)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
@nox.parametrize("torch", [OLDEST, NEWEST])
def core(session: nox.Session, torch: str) -> None:
    """What needs torch, NumPy and einops only."""
    install(session, ".", torch)
    session.run("python", "-c", CORE)


def install(session: nox.Session, what: str, torch: str) -> None:
    """Install the checkout beside a torch; pip may not exchange that."""
    given = "torch" if torch == NEWEST else f"torch=={torch}"
    session.install("--editable", what, given)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, strictly, and what pages say."""
    session.install("--editable", ".[docs]")
    session.run("python", "-m", "mkdocs", "build", "--strict", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Build, check and install what would be uploaded."""
    folder = session.create_tmp()
    session.install("build", "twine")
    session.run("python", "-m", "build", "--outdir", f"{folder}/dist")
    session.run("bash", "-c", f"twine check --strict {folder}/dist/*", external=True)
    session.run("bash", "-c", f"python -m pip install --force-reinstall {folder}/dist/*.whl", external=True)
    session.run("brpg", "--version")
    session.run("python", "-c", CORE)
