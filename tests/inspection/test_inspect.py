"""`brpg inspect`: heads are found in checkpoints of any shape, and what is said of them is right."""

from __future__ import annotations

import argparse
import importlib
import random
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from builders import head, random_bank, run, same, state
from hypothesis import given
from hypothesis import strategies as st
from packages import needs_torch_2_5
from PIL import Image
from torch import Tensor

from brpg_lib import PrototypeHead
from brpg_lib.adapters.plugin import Plugin
from brpg_lib.cli import main as brpg
from brpg_lib.inspection import command, load_bank, read_heads
from brpg_lib.inspection.findings import class_similarity, find
from brpg_lib.inspection.record import HeadRecord
from brpg_lib.learn.diagnostics import COLLAPSED, DEAD_AFTER


def of_model(module: PrototypeHead, prefix: str) -> dict[str, Tensor]:
    rest = {f"{prefix}conv.weight": torch.zeros(3, 3)}
    return rest | {f"{prefix}brpg.{name}": value for name, value in module.state_dict().items()}


SHAPES: dict[str, Callable[[PrototypeHead], Any]] = {
    "": PrototypeHead.state_dict,
    "brpg": lambda module: of_model(module, ""),
    "module.brpg": lambda module: of_model(module, "module."),
    "state_dict/net.brpg": lambda module: {"epoch": 3, "state_dict": OrderedDict(of_model(module, "net."))},
    "a/b/head": lambda module: {"a": {"b": {f"head.{k}": v for k, v in module.state_dict().items()}}, "c": [1]},
    "parts/head": lambda module: {"parts": {"head": module.state_dict()}},
}


def saved(tmp_path: Path, value: object) -> Path:
    path = tmp_path / "checkpoint.pt"
    torch.save(value, path)
    return path


@pytest.fixture(scope="module")
def learned() -> PrototypeHead:
    return run(head(num_classes=4, queue_size=30, recluster_every=20), 7)


@pytest.mark.parametrize("place", SHAPES)
def test_a_head_is_found_wherever_it_is(place: str, learned: PrototypeHead, tmp_path: Path) -> None:
    (found,) = read_heads(saved(tmp_path, SHAPES[place](learned)))
    assert found.place == place
    assert torch.equal(found.prototypes, learned.bank.prototypes)
    assert torch.equal(found.mask, learned.bank.mask)
    assert torch.equal(found.rows, learned.queue.rows)
    assert torch.equal(found.idle, learned.idle)
    assert found.config == learned.config.to_dict()
    assert (found.settings["iteration"], found.phase) == (7, "learn")


def test_other_formats(learned: PrototypeHead, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(dict(learned.state_dict()), str(tmp_path / "head.safetensors"))
    torch.save(learned.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("head.safetensors", "old.pt"):
        (found,) = read_heads(tmp_path / name)
        assert torch.equal(found.prototypes, learned.bank.prototypes)
        assert found.settings["iteration"] == 7


@needs_torch_2_5
def test_random_states_beside_it(learned: PrototypeHead, tmp_path: Path) -> None:
    """As trainers that resume exactly save them: NumPy's is made of an array."""
    rng = (torch.get_rng_state(), np.random.get_state(), random.getstate(), np.float64(0.5), np.arange(3))
    (found,) = read_heads(saved(tmp_path, {"head": learned.state_dict(), "rng": rng}))
    assert found.place == "head"
    assert torch.equal(found.prototypes, learned.bank.prototypes)


def test_the_state_of_a_patched_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = Plugin({}, dataset="pascal", num_classes=3, feature_dim=5, epochs=4, iters_per_epoch=5)
    plugin.save(tmp_path / "latest.pth", 2)
    torch.save({"model": {"weight": torch.zeros(2)}, "args": argparse.Namespace(lr=1)}, tmp_path / "latest.pth")
    assert [found.place for found in read_heads(tmp_path / "latest.brpg.pth")] == ["plugin/head"]
    assert command.main([str(tmp_path / "latest.pth")]) == 2
    said = capsys.readouterr().err
    assert "holds objects of argparse.Namespace; the head of a patched script is in latest.brpg.pth" in said


def test_a_bank_or_a_partial_state_is_enough(learned: PrototypeHead, tmp_path: Path) -> None:
    (found,) = read_heads(saved(tmp_path, learned.bank.state_dict()))
    assert (found.place, found.rows, found.idle, found.settings) == ("", None, None, {})
    assert command.main([str(tmp_path / "checkpoint.pt")]) == 0
    partial = {"head.bank.prototypes": learned.bank.prototypes, "head.bank.mask": learned.bank.mask}
    (found,) = read_heads(saved(tmp_path, partial))
    assert found.place == "head"


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_the_phase_and_the_rows(steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = run(head(), steps)
    path = saved(tmp_path, module.state_dict())
    (found,) = read_heads(path)
    assert found.phase == {0: "warmup", 1: "warmup", 3: "collect", 5: "learn"}[steps]
    assert command.main([str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"iteration {steps}, seed 0, phase {found.phase}" in said
    assert ("the queues are empty: nothing was collected yet" in said) == (steps < 2)
    assert ("the queues are empty: released after the last clustering" in said) == (steps == 5)
    for high, low in module.queue.rows.tolist():
        assert f"{high} + {low}" in said


def test_a_checkpoint_is_not_changed_or_run(learned: PrototypeHead, tmp_path: Path) -> None:
    before = state(learned)
    path = saved(tmp_path, learned.state_dict())
    bank = load_bank(path)
    bank.update(torch.randn(9, 5), torch.arange(9) % 4)
    assert same(torch.load(path, weights_only=True), before)


@given(classes=st.integers(1, 5), slots=st.integers(1, 3), dim=st.integers(1, 5), seed=st.integers(0, 99))
def test_similarity_of_classes(classes, slots, dim, seed):
    bank, _ = random_bank(classes, slots, dim, seed, share=0.5)
    found = class_similarity(bank.prototypes, bank.mask)
    expected = torch.full((classes, classes), -torch.inf)
    for one in range(classes):
        own = bank.prototypes[one][bank.mask[one]]
        if len(own):
            expected[one] = reference.class_similarity(own, bank.prototypes, bank.mask).amax(0)
    expected.fill_diagonal_(1.0)
    expected[~bank.mask.flatten(1).any(1)] = -torch.inf
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found, found.T) or torch.allclose(found, found.T)


def record(prototypes: Tensor, mask: Tensor, idle: Tensor | None = None) -> HeadRecord:
    return HeadRecord("", prototypes, mask, None, idle, None, None, {})


def test_dead_and_collapsed_prototypes_and_nearest_pairs() -> None:
    bank, _ = random_bank(4, 2, 6, 3, share=1.1)
    vectors, mask = bank.prototypes.clone(), bank.mask.clone()
    vectors[1, 1, 0] = 3 * vectors[1, 0, 1]  # the same direction
    vectors[2, 0, 0] = vectors[0, 0, 0] + 0.01
    mask[3] = False
    idle = torch.zeros(4, 2, 2, dtype=torch.int64)
    idle[0, 1, 1], idle[0, 0, 0], idle[3, 0, 0] = DEAD_AFTER, DEAD_AFTER - 1, DEAD_AFTER
    found = find(record(vectors, mask, idle))
    assert found.prototypes.tolist() == [[2, 2], [2, 2], [2, 2], [0, 0]]
    assert found.dead is not None
    assert found.dead.tolist() == [1, 0, 0, 0], "a prototype that is not there is not dead"
    assert found.collapsed.tolist() == [0, 1, 0, 0]
    assert COLLAPSED < 1
    pairs = found.nearest_pairs(99)
    assert pairs[0][:2] == (0, 2)
    assert sorted(pair[:2] for pair in pairs) == [(0, 1), (0, 2), (1, 2)]
    assert [cosine for *_, cosine in pairs] == sorted((cosine for *_, cosine in pairs), reverse=True)
    assert found.nearest(0) == (2, pytest.approx(pairs[0][2]))
    assert found.nearest(3) is None


def test_a_single_class_has_no_neighbour(tmp_path: Path) -> None:
    bank, _ = random_bank(1, 2, 6, 3, share=1.1)
    assert find(record(bank.prototypes, bank.mask)).nearest(0) is None
    for out in ("one.png", "one.html"):
        assert command.main([str(saved(tmp_path, bank.state_dict())), "--out", str(tmp_path / out)]) == 0


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_pages_and_pictures(share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank, _ = random_bank(5, 2, 6, 3, share=share)
    names = tmp_path / "names.txt"
    names.write_text("sky\nroad <1>\n[red]car\ntree\n\npole\n")
    path = saved(tmp_path, {"head": {f"bank.{k}": v for k, v in bank.state_dict().items()}})
    for out in ("page.html", "page.png", "page.SVG"):
        assert command.main([str(path), "--names", str(names), "--out", str(tmp_path / out)]) == 0
        assert "[red]car" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "data:image/png;base64," in page
    assert "road &lt;1&gt;" in page
    assert Image.open(tmp_path / "page.png").width > 500
    assert "<svg" in (tmp_path / "page.SVG").read_text()
    assert not list(tmp_path.glob("*.partial"))


def test_names_in_the_checkpoint(learned: PrototypeHead, tmp_path: Path) -> None:
    value = {"class_names": ["a", "b", "c", "d"], "record": {"phases": [(0, "warmup"), (4, "collect")]}}
    (found,) = read_heads(saved(tmp_path, value | {"head": learned.state_dict()}))
    assert found.names == ("a", "b", "c", "d")
    assert found.phase == "collect", "what the training has recorded"
    (found,) = read_heads(saved(tmp_path, {"class_names": ["a"], "head": learned.state_dict()}))
    assert found.names is None


def test_an_ignored_class_is_not_one_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = head(num_classes=3, ignore_index=0)
    module.seen[:] = torch.tensor([False, True, False])
    assert command.main([str(saved(tmp_path, module.state_dict()))]) == 0
    said = capsys.readouterr().out
    assert "classes that the labels have not shown: 2\n" in said
    assert "ignored: 0\n" in said


def test_what_is_said_about_wrong_usage(
    learned: PrototypeHead, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = saved(tmp_path, learned.state_dict())
    files = {"text.pt": b"no checkpoint", "empty.pt": b"", "cut.pt": good.read_bytes()[:3000]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"model": {"weight": torch.zeros(3)}, "prototypes": torch.zeros(3, 2)}, tmp_path / "none.pt")
    torch.save({"a": learned.state_dict(), "b": learned.state_dict()}, tmp_path / "two.pt")
    (tmp_path / "names.txt").write_text("a\nb\n")
    (tmp_path / "nothing").mkdir()
    cases: list[tuple[list[str], str]] = [
        (["missing.pt"], "No such file"),
        (["."], "expected a checkpoint, found a directory with checkpoint.pt, cut.pt, empty.pt, none.pt, text.pt"),
        (["nothing"], "expected a checkpoint, found a directory\n"),
        (["none.pt"], "expected the state of a prototype head (bank.prototypes, bank.mask), found none"),
        (["two.pt"], "--head: expected one of 'a', 'b'; found several heads"),
        (["two.pt", "--head", "c"], "head: expected one of ['a', 'b'], found 'c'"),
        (["checkpoint.pt", "--names", "names.txt"], "--names: expected 4 lines, found 2"),
        (["checkpoint.pt", "--out", "page.docx"], "--out: expected a name that ends in .html, .png, .svg, .pdf"),
        (["checkpoint.pt", "--out", "nowhere/page.png"], "--out: no such directory"),
        *([[name], "is no checkpoint, or damaged"] for name in files),  # type: ignore[misc]
    ]
    for arguments, message in cases:
        paths = [a if a.startswith("--") or a == "c" else str(tmp_path / a) for a in arguments]
        assert command.main(paths) == 2, arguments
        said = capsys.readouterr()
        assert message in said.err
        assert said.err.count("\n") == 1, said.err
        assert said.out == ""
    assert command.main([str(tmp_path / "two.pt"), "--head", "b"]) == 0
    with pytest.raises(ValueError, match=r"expected one head, or the place of one of them, found 2: \['a', 'b'\]"):
        load_bank(tmp_path / "two.pt")


def test_a_package_that_is_missing_is_named(
    learned: PrototypeHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, learned.state_dict())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "brpg_lib.inspection.picture", raising=False)
    assert command.main([str(path), "--out", str(tmp_path / "page.png")]) == 2
    said = capsys.readouterr().err
    assert said == "brpg inspect needs matplotlib for this: pip install 'brpg-lib[inspect]'\n"
    assert command.main([str(path)]) == 0, "the tables do without"


def test_reading_needs_torch_numpy_and_einops_only(learned: PrototypeHead, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from brpg_lib.inspection import read_heads\n"
        f"print(read_heads({str(saved(tmp_path, learned.state_dict()))!r})[0].num_classes)\n"
        "assert not {'rich', 'matplotlib', 'safetensors', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "4\n", done.stderr


def test_the_command(learned: PrototypeHead, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert brpg(["inspect", str(saved(tmp_path, learned.state_dict()))]) == 0
    said = capsys.readouterr().out
    assert "4 classes, 5 channels" in " ".join(said.split())
    assert "recluster" not in said, "which is of the schedule"
    assert importlib.import_module("brpg_lib.cli").COMMANDS["inspect"][1] == "inspect"
