"""``brpg patch --guide``: scripts of no known family."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from own_scripts import ACCUMULATING, COUNTED, OWN, TRAINER
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from brpg_lib import FeatureTap
from brpg_lib.adapters.guide import guide
from brpg_lib.adapters.roles.findings import Findings
from brpg_lib.adapters.roles.layers import LIBRARIES, find_layers
from brpg_lib.cli import main
from brpg_lib.examples import lightning_module

PRESET = "Plugin({'preset': 'small_data'}"


@pytest.mark.parametrize(
    ("source", "tapped"),
    [
        pytest.param(
            COUNTED,
            "    brpg.tap(net, teacher=mean, features='decoder', logits='classifier')",
            marks=pytest.mark.slow,
        ),
        (TRAINER, "        self.brpg.tap(self.net, teacher=self.mean, features='decoder', logits='classifier')"),
    ],
    ids=["functions", "class"],
)
def test_an_own_script_gets_lines_that_run(
    source: str, tapped: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text(source)
    assert main(["patch", str(script), "--guide"]) == 0
    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [script], "nothing is written"
    made = guide(source)
    assert not made.questions
    assert "to fill in" not in printed
    assert f"+{tapped}\n" in printed
    patched = made.plan.apply()
    settings = "{'feature_dim': 8, 'grid_size': 4, 'queue_size': 100, 'rare_class_fallback': True}"
    losses = {}
    for name, changed in {
        "original": source,
        "enabled": patched.replace(PRESET, f"Plugin({settings}"),
        "disabled": patched.replace(PRESET, "Plugin({'enabled': False}"),
    }.items():
        script.write_text(changed)
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
        "brpg.update_teacher(SHARE)",
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


UPDATE = """def move(teacher, student, step, top=0.99):
    decay = min(1 - 1 / (step + 1), top)
    for old, new in zip(teacher.parameters(), student.parameters()):
        old.data.mul_(decay).add_(new.data, alpha=1 - decay)
"""
MOVED = COUNTED[: COUNTED.index("def move(")] + UPDATE + COUNTED[COUNTED.index("\n\ndef run(") :]
SHARES = {
    "computed in a function": (
        MOVED.replace("move(mean, net, 0.9)", "move(mean, net, i)"),
        "min(1 - 1 / (i + 1), 0.99)",
    ),
    "given to it": (MOVED.replace("move(mean, net, 0.9)", "move(mean, net, i, top=0.9)"), "min(1 - 1 / (i + 1), 0.9)"),
    "elsewhere": (
        COUNTED.replace("move(mean, net, 0.9)", "helpers.move(mean, net, i)").replace(
            "import copy", "import copy, helpers"
        ),
        "min(1 - 1 / (epoch * min(len(known), len(unknown)) + i + 1), 0.99)",
    ),
    "a constant beside a count": (
        COUNTED.replace("move(mean, net, 0.9)", "helpers.move(mean, net, i, 0.9)").replace(
            "import copy", "import copy, helpers"
        ),
        "0.9",
    ),
    "not in what is saved": (
        COUNTED.replace(
            "torch.save(net.state_dict()", "torch.save({'net': net.state_dict(), 'mean': mean.state_dict(), 'i': i}"
        ),
        "keep",
    ),
}


@pytest.mark.parametrize("name", SHARES)
def test_the_teacher_s_share(name: str) -> None:
    source, share = SHARES[name]
    patched = guide(source).plan.apply()
    expected = "0.9" if name == "not in what is saved" else share
    assert f"brpg.update_teacher({expected})" in patched


def _roles(source: str) -> dict[str, str]:
    return {role.name: role.code for role in guide(source).plan.findings.roles}


def test_a_trainer_that_accumulates_and_resumes(tmp_path: Path) -> None:
    made = guide(ACCUMULATING)
    patched = made.plan.apply()
    roles = _roles(ACCUMULATING)
    assert (roles["iteration"], roles["steps of an epoch"], roles["epochs"]) == ("self.steps", "4", "3")
    assert "self.brpg.update_teacher(keep)" in patched
    assert patched.index("self.brpg = Plugin(") < patched.index("if os.path.exists"), "before the optimizer's state"
    settings = "{'feature_dim': 8, 'grid_size': 4, 'queue_size': 100, 'rare_class_fallback': True}"
    script = tmp_path / "train.py"
    changed = patched.replace(PRESET, f"Plugin({settings}").replace("range(self.first, 3)", "range(self.first, END)")
    for end in (2, 3):
        script.write_text(changed.replace("END", str(end)))
        done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == (8 if end == 2 else 4), "the second run goes on after the first"


@pytest.mark.parametrize(
    ("old", "new", "length"),
    [
        ("again(self.known), again(self.unknown)", "iter(self.known), iter(self.unknown)", "4"),
        ("range(4)", "range(len(self.known))", "len(self.known)"),
        (
            "        for _ in range(4):\n            for _ in range(2):\n"
            "                total, shown = self.training_step(next(known), next(unknown))",
            "        for i, pair in enumerate(zip(self.known, unknown)):\n            if True:\n"
            "                total, shown = self.training_step(*pair)",
            "len(self.known)",
        ),
        (
            "        for _ in range(4):\n            for _ in range(2):\n"
            "                total, shown = self.training_step(next(known), next(unknown))",
            "        for i, pair in enumerate(zip(known, unknown)):\n            if i == 8:\n                break\n"
            "            if True:\n                total, shown = self.training_step(*pair)",
            "8",
        ),
    ],
)
def test_the_length_of_an_epoch(old: str, new: str, length: str) -> None:
    assert old in ACCUMULATING
    source = ACCUMULATING.replace(old, new)
    assert (_roles(source)["iteration"], _roles(source)["steps of an epoch"]) == ("self.steps", length)


def test_batches_between_steps_are_no_steps() -> None:
    source = ACCUMULATING.replace(
        "        for _ in range(4):\n            for _ in range(2):\n",
        "        for i in range(8):\n            if True:\n",
    )
    source = source.replace(
        "            self.steps += 1\n", "            if (i + 1) % 2 == 0:\n                self.steps += 1\n"
    )
    assert _roles(source)["steps of an epoch"] == "8 // 2"


def test_a_hint_for_the_iteration_works_as_it_is_told() -> None:
    uncounted = ACCUMULATING.replace("            self.steps += 1\n", "").replace("(self.steps + 1)", "2")
    (missing,) = guide(uncounted).plan.needed
    assert missing.name == "iteration"
    assert "enumerate" not in missing.by_hand
    assert "self.iteration += 1 after self.opt.step()" in missing.by_hand
    followed = uncounted.replace(
        "        torch.manual_seed(0)\n", "        torch.manual_seed(0)\n        self.iteration = 0\n"
    )
    followed = followed.replace("self.opt.step()\n", "self.opt.step()\n            self.iteration += 1\n")
    assert _roles(followed)["iteration"] == "self.iteration"
    plain = OWN.replace("zip(known, unknown)", "enumerate(zip(known, unknown))").replace(
        "for (a, truth), (weak, strong)", "for _, ((a, truth), (weak, strong))"
    )
    assert _roles(plain)["iteration"] == "epoch * min(len(known), len(unknown)) + _"


@pytest.mark.parametrize("name", ["a count of steps", "labels", "pseudo labels", "a backward pass", "a moving teacher"])
def test_lines_are_printed_with_holes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "train.py"
    script.write_text(MISSING[name][0])
    assert main(["patch", str(script), "--guide"]) == 1
    printed = capsys.readouterr().out
    assert "brpg.tap(" in printed
    assert "LabeledBatch(" in printed
    assert "HOLE" not in printed
    assert "# ...: " in printed


def test_a_lightning_module_gets_lines_for_lightning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "train.py"
    lines = (Path(lightning_module.__file__)).read_text().splitlines()
    script.write_text("\n".join(line for line in lines if "brpg_lib import" not in line and "brpg_lib.ex" not in line))
    assert main(["patch", str(script), "--guide"]) == 1
    printed = capsys.readouterr().out
    assert "Lightning goes backward itself" in printed
    assert "in training_step, before it returns the loss" in printed
    assert "Plugin(" not in printed
    assert "HOLE" not in printed
    for lines in printed.split("    # in ")[1:]:
        code = "\n".join(line.removeprefix("    ") for line in lines.splitlines()[1:])
        compile(code.replace("[...]", "[:1]"), "lines", "exec")


def test_the_loader_that_is_not_seen_is_named() -> None:
    source = OWN.replace("zip(known, unknown)", "batches_of(known, unknown)").replace(
        "import copy", "from data import batches_of\nimport copy"
    )
    (missing,) = [one for one in guide(source).plan.needed if one.name == "iteration"]
    assert "cannot see that `batches_of(known, unknown)` is a DataLoader" in missing.reason


def test_lines_are_those_of_the_script_as_it_is() -> None:
    source = COUNTED.replace(
        "    torch.manual_seed(0)\n    num_classes = 2\n", "    torch.manual_seed(0); num_classes = 2\n"
    )
    (found,) = [role for role in guide(source).plan.findings.roles if role.name == "backward"]
    assert "total.backward()" in source.splitlines()[found.line - 1]


def test_a_score_that_is_an_entry_of_a_row() -> None:
    source = ACCUMULATING.replace(
        "            self.train_epoch(epoch)\n",
        "            row = {'epoch': epoch, 'loss': self.train_epoch(epoch)}\n"
        "            row['miou'] = self.validate()\n"
        "            self.best = max(self.best, row['miou'])\n",
    )
    assert source != ACCUMULATING
    made = guide(source)
    assert "scores" not in {missing.name for missing in made.plan.findings.missing}
    lines = made.plan.apply().splitlines()
    (written,) = [i for i, line in enumerate(lines) if "self.brpg.record(" in line]
    assert "epoch, row['miou']" in lines[written]
    assert "row['miou'] = self.validate()" in lines[written - 1]


SMP = {"decoder": "decoder", "classifier": "segmentation_head.0"}
OWN_LAYERS = {"decoder": "DECODER", "classifier": "CLASSIFIER"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import segmentation_models_pytorch as smp\nnet = smp.Unet('resnet18', classes=3)", SMP),
        ("import segmentation_models_pytorch\nnet = segmentation_models_pytorch.create_model('fpn')", SMP),
        ("from segmentation_models_pytorch import DeepLabV3Plus as Net\nnet = Net(classes=3)", SMP),
        ("import segmentation_models_pytorch as smp\nloss = smp.losses.DiceLoss('binary')\nnet = Net()", OWN_LAYERS),
        ("import segmentation_models_pytorch as smp\nnet = smp.DPT()", OWN_LAYERS),
        (
            "from torchvision.models.segmentation import deeplabv3_resnet50\nnet = deeplabv3_resnet50(num_classes=3)",
            {"decoder": "classifier.3", "classifier": "classifier.4"},
        ),
        ("from torchvision.models.segmentation import fcn_resnet50\nnet = fcn_resnet50(num_classes=3)", OWN_LAYERS),
    ],
)
def test_layers_of_networks_of_known_libraries(source: str, expected: dict[str, str]) -> None:
    layers, questions = find_layers(ast.parse(source), (), Findings())
    assert layers == expected
    assert len(questions) == (2 if expected is OWN_LAYERS else 0)


@pytest.mark.parametrize("made", ["smp", "torchvision"])
def test_known_layers_are_there(made: str) -> None:
    if made == "smp":
        smp = pytest.importorskip("segmentation_models_pytorch")
        nets = [getattr(smp, name)("resnet18", encoder_weights=None, classes=3) for name in ("Unet", "FPN", "PSPNet")]
    else:
        nets = [deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)]
    known = LIBRARIES["segmentation_models_pytorch" if made == "smp" else "torchvision.models.segmentation"][1]
    for net in nets:
        assert net.get_submodule(known["classifier"]).out_channels == 3
        decoder = FeatureTap(net.train(), known["decoder"])
        with decoder:
            net(torch.randn(2, 3, 64, 64))
        (features,) = decoder.take(1)
        assert features.shape[1] == net.get_submodule(known["classifier"]).in_channels
