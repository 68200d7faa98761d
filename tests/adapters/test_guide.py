"""``brpg patch --guide``: scripts of no known family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from brpg_lib.adapters.guide import guide
from brpg_lib.cli import main

OWN = """
import copy
import json

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.classifier = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.classifier(self.decoder(x))


def move(teacher, student, keep):
    for old, new in zip(teacher.parameters(), student.parameters()):
        old.data.lerp_(new.data, 1 - keep)


def run(device="cpu"):
    torch.manual_seed(0)
    num_classes = 2
    net = Net().to(device)
    mean = copy.deepcopy(net)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    images = torch.rand(8, 3, 16, 16)
    known = DataLoader(list(zip(images, (images[:, 0] > 0.5).long())), batch_size=2)
    unknown = DataLoader(list(zip(images, images + 0.1)), batch_size=2)
    for epoch in range(3):
        for (a, truth), (weak, strong) in zip(known, unknown):
            with torch.no_grad():
                sure, best = mean(weak).softmax(1).max(1)
            out = net(torch.cat([a, strong]))
            total = F.cross_entropy(out[: len(a)], truth) + F.cross_entropy(out[len(a) :], best)
            opt.zero_grad()
            total.backward()
            opt.step()
            move(mean, net, 0.9)
            print(json.dumps(total.item()))
        torch.save(net.state_dict(), "net.pth")


if __name__ == "__main__":
    run()
"""
COUNTED = OWN.replace(
    "for (a, truth), (weak, strong) in zip(known, unknown)",
    "for i, ((a, truth), (weak, strong)) in enumerate(zip(known, unknown))",
)


def test_an_own_script_gets_lines_that_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "train.py"
    script.write_text(COUNTED)
    assert main(["patch", str(script), "--guide"]) == 0
    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [script], "nothing is written"
    made = guide(COUNTED)
    assert made.questions == ["CHANNELS: channels of the decoder's features"]
    assert "to fill in: CHANNELS: channels" in printed
    assert "+    brpg.tap(net, teacher=mean, features='decoder', logits='classifier')" in printed
    patched = made.plan.apply()
    assert "num_classes=num_classes" in patched
    settings = "{'feature_dim': 8, 'grid_size': 4, 'queue_size': 100, 'rare_class_fallback': True}"
    losses = {}
    for name, source in {
        "original": COUNTED,
        "enabled": patched.replace("CHANNELS = ...", "CHANNELS = 4").replace("Plugin(None", f"Plugin({settings}"),
        "disabled": patched.replace("CHANNELS = ...", "CHANNELS = 4").replace(
            "Plugin(None", "Plugin({'enabled': False}"
        ),
    }.items():
        script.write_text(source)
        done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        losses[name] = [json.loads(line) for line in done.stdout.splitlines()]
    assert losses["original"] == losses["disabled"]
    assert losses["enabled"][:8] == pytest.approx(losses["original"][:8], rel=1e-6)
    assert all(one > two for one, two in zip(losses["enabled"][8:], losses["original"][8:], strict=True))
    assert (tmp_path / "net.brpg.pth").is_file()


MISSING = {
    "a count of steps": (OWN, "iteration", "for i, ((a, truth), (weak, strong)) in enumerate(zip(known, unknown)):"),
    "pseudo labels": (
        COUNTED.replace(" + F.cross_entropy(out[len(a) :], best)", " + ((out[len(a) :] - sure) ** 2).mean()").replace(
            "sure, best = mean(weak).softmax(1).max(1)", "sure = mean(weak)"
        ),
        "pseudo labels",
        "confidence, pseudo_labels = teacher(images).softmax(dim=1).max(dim=1)",
    ),
    "labels": (
        COUNTED.replace("F.cross_entropy(out[: len(a)], truth) + ", ""),
        "labels",
        "LabeledBatch(features=..., logits=..., labels=LABELS)",
    ),
    "a backward pass": (COUNTED.replace("total.backward()", "pass"), "backward", "loss.backward()"),
    "a moving teacher": (
        COUNTED.replace("            move(mean, net, 0.9)\n", ""),
        "average",
        "brpg.update_teacher(RATIO)",
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_said(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, role, by_hand = MISSING[name]
    script = tmp_path / "train.py"
    script.write_text(source)
    assert main(["patch", str(script), "--guide"]) == 1
    printed = capsys.readouterr().out
    assert f"MISSING: {role}: " in printed
    assert f"by hand: {by_hand}" in printed
    assert "the head needs: images with labels" in printed
