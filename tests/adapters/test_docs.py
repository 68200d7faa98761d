"""What adapters/README.md shows is what happens."""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from brpg_lib.adapters.registry import FRAMEWORKS
from brpg_lib.cli import main
from brpg_lib.settings import CONFIG_KEYS, SCHEDULE_KEYS

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "adapters/README.md").read_text()
UNIMATCH = ROOT / "tests/standins/unimatch/unimatch.py"

TRAIN = """
import copy
import json
import sys

import torch
import torch.nn.functional as F
import yaml
from torch import nn


def update_ema(teacher, model, ratio):
    for kept, new in zip(teacher.parameters(), model.parameters()):
        kept.data.lerp_(new.data, 1 - ratio)


def main():
    cfg = yaml.safe_load(open(sys.argv[1]))
    device = "cpu"
    torch.manual_seed(0)
    model = nn.Sequential()
    model.decoder = nn.Sequential(nn.Conv2d(3, cfg["channels"], 3, padding=1), nn.ReLU())
    model.classifier = nn.Conv2d(cfg["channels"], cfg["classes"], 1)
    teacher = copy.deepcopy(model)
    loader = [torch.rand(2, 3, 16, 16) for _ in range(4)]
    optimizer = torch.optim.SGD([{"params": list(model.parameters())}], lr=0.1)
    for epoch in range(cfg["epochs"]):
        for step, images in enumerate(loader):
            labels = (images[:, 0] > 0.5).long()
            with torch.no_grad():
                confidence, pseudo = teacher(images).softmax(1).max(1)
            logits_l, logits_u = model(torch.cat((images, images + 0.1))).chunk(2)
            loss = F.cross_entropy(logits_l, labels) + F.cross_entropy(logits_u, pseudo)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            update_ema(teacher, model, 0.9)
            print(json.dumps(loss.item()))
        state = {"epoch": epoch}
        torch.save(state, cfg['save'])


if __name__ == "__main__":
    main()
"""


def block(language: str, containing: str) -> str:
    (found,) = (text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in text)
    return str(found)


def test_the_lines_of_unimatch() -> None:
    source = UNIMATCH.read_text()
    patched = FRAMEWORKS["unimatch"].patch("unimatch.py", source)
    lines = list(difflib.ndiff(source.splitlines(), patched.splitlines()))
    changed = ("add_argument", "torch.load")
    added = [line[2:] for line in lines if line.startswith("+ ") and line[2:].strip()]
    added = [line for line in added if not any(text in line for text in changed)]
    shown = [line[1:] for line in block("diff", "Plugin").splitlines() if line.startswith("+")]
    assert shown == added


def test_the_tables() -> None:
    for framework in FRAMEWORKS.values():
        for text in (f"`{framework.name}`", framework.repository, *framework.commits, *framework.scripts):
            assert text in README
        assert all(f"`{name}`" in README for name in framework.fixes)


def test_the_section_of_the_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    section = yaml.safe_load(block("yaml", "enabled"))["brpg"]
    own = {"enabled", "preset", "feature_dim", "seed", "queue_dtype", "queue_device"}
    assert own <= section.keys() <= own | set(CONFIG_KEYS) | set(SCHEDULE_KEYS)


def test_the_adapter_for_another_framework(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("yaml")
    adapter = block("python", "FRAMEWORK = ")
    assert len(adapter.splitlines()) <= 50
    (tmp_path / "mine.py").write_text(adapter)
    (tmp_path / "train.py").write_text(TRAIN)
    assert main(["patch", str(tmp_path / "mine.py"), str(tmp_path)]) == 0
    assert "train_brpg.py config.yaml" in capsys.readouterr().out
    losses = {}
    for name, script, section in (
        ("original", "train.py", "{}"),
        ("disabled", "train_brpg.py", "{enabled: false}"),
        ("enabled", "train_brpg.py", "{feature_dim: 8, grid_size: 4, queue_size: 100, rare_class_fallback: true}"),
    ):
        cfg = f"{{classes: 2, channels: 4, epochs: 3, save: {name}.pth, brpg: {section}}}"
        (tmp_path / "config.yaml").write_text(cfg)
        command = [sys.executable, script, "config.yaml"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        losses[name] = [json.loads(line) for line in done.stdout.splitlines()]
    assert losses["original"] == losses["disabled"]
    assert losses["enabled"][:8] == pytest.approx(losses["original"][:8], rel=1e-6), "only the learn phase has a loss"
    learn = zip(losses["enabled"][8:], losses["original"][8:], strict=True)
    assert all(with_head > without for with_head, without in learn)
    assert (tmp_path / "enabled.brpg.pth").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1", "expected FRAMEWORK = Framework(...), found NoneType"), (None, "no such file")],
)
def test_an_adapter_that_is_none(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    assert main(["patch", str(path), str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
