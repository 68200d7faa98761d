"""What a stranger meets first: the README is short, its code runs, and its links lead somewhere."""

from __future__ import annotations

import re
import runpy

import torch
from pages import REPOSITORY, ROOT, STARTS, blocks, targets

from brpg_lib.cli import COMMANDS

README = ROOT / "README.md"
TEXT = README.read_text()
(THREE_LINES,) = blocks(README, "python")


def test_it_is_short() -> None:
    assert TEXT.count("\n") <= 130


def test_three_lines() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 256, 5, 5, generator=generator).requires_grad_()
    logits = torch.randn(4, 21, 5, 5, generator=generator)
    scope = {
        "epochs": 3,
        "loader": range(10),
        "device": "cpu",
        "loss": torch.tensor(1.0),
        "feat_l": features[:2],
        "feat_u": features[2:4],
        "feat_w": features[4:].detach(),
        "pred_l": logits[:2],
        "pred_w": logits[2:],
        "label_l": torch.randint(0, 21, (2, 17, 17), generator=generator),
        "pseudo": torch.randint(0, 21, (2, 17, 17), generator=generator),
        "conf": torch.rand(2, 17, 17, generator=generator),
    }
    exec(THREE_LINES, scope)
    scope["loss"].backward()
    assert scope["head"].iteration == 1
    assert scope["loss"].item() == 1.0  # warming up
    assert features.grad is not None


def test_links_work_on_a_package_index_too() -> None:
    found = targets(README)
    assert all(target.startswith("https://") for target in found)
    own = [target for target in found if target.startswith(REPOSITORY) or "githubusercontent" in target]
    assert len(own) > 10
    for target in own:
        (start,) = (start for start in STARTS if target.startswith(start))
        assert (ROOT / target.removeprefix(start)).is_file(), target


def test_its_commands_exist() -> None:
    commands = "\n".join(blocks(README, "sh"))
    makefile = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"^brpg ([a-z-]+)", commands, re.MULTILINE)) <= set(COMMANDS)
    for target in re.findall(r"\bmake ([a-z]+)", TEXT):
        assert f"\n{target}:" in makefile, target


def test_its_figures_are_those_of_the_pages() -> None:
    results, cost = ((ROOT / f"docs/{name}.md").read_text() for name in ("results", "cost"))
    intervals = re.findall(r"[+-]\d+\.\d \[[^\]]*\]", TEXT)
    assert len(intervals) >= 6
    assert [interval for interval in intervals if interval not in results] == []
    (_, table), *_ = re.findall(r"## What it costs\n(.*?)\n(\|.*?)\n\n", TEXT, re.DOTALL)
    figures = re.findall(r"\b\d+(?:\.\d+)? (?:ms|s|MB|GB)\b", table)
    assert len(figures) >= 10
    assert [figure for figure in figures if figure not in cost] == []


def test_the_picture_can_be_drawn_again(tmp_path: object) -> None:
    idea = runpy.run_path(str(ROOT / "docs/idea.py"))
    labels, confidence, features = idea["pixels"]()
    bank = idea["bank_of"](labels, (confidence < 0.8).astype(int), features, [2, 2])
    alone = idea["bank_of"](labels, 0 * labels, features, [1, 0])
    wrong = [float((idea["classified"](found, features).numpy() != labels).mean()) for found in (bank, alone)]
    assert [f"{share:.0%}" for share in wrong] == ["0%", "11%"]  # what the picture says
