import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from packages import needs_transformers

from brpg_lib.examples import demo, quickstart
from brpg_lib.examples.training import apart
from brpg_lib.examples.training.apart import train
from brpg_lib.examples.training.build import build
from brpg_lib.examples.training.data import digits
from brpg_lib.examples.training.frameworks import TRAINERS as FRAMEWORKS
from brpg_lib.examples.training.recipe_files import read_recipe
from brpg_lib.examples.training.reports import demo as report
from brpg_lib.files import save_atomically


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(digits, "SCENES", {"labeled": 8, "unlabeled": 8, "test": 6})


@pytest.fixture
def here(monkeypatch):
    """Trains in this process: starting others takes seconds."""

    def run(recipe, with_head, checkpoint, resume, device):
        yield train(recipe, with_head, checkpoint, resume, device)

    monkeypatch.setattr(demo, "run_apart", run)


def tiny(framework, steps=12):
    small = {"network": "compact", "pretrained": False, "width": 8, "size": 33, "batch_size": 2, "feature_dim": 8}
    return read_recipe("few_labels/digits", {**small, "framework": framework, "epoch_steps": steps})


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


SMALL = ["--steps", "12", "--batch-size", "2", "--size", "33", "--device", "cpu", "--network", "compact"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_demo_writes_report_and_metrics(framework, tmp_path, here, capsys):
    assert demo.main(["--framework", framework, *SMALL, "--out", str(tmp_path)]) == 0
    folder = tmp_path / f"digits-{framework}-0"
    assert (folder / "report.png").stat().st_size > 10_000
    metrics = json.loads((folder / "metrics.json").read_text())
    runs = metrics["runs"]
    assert list(runs) == (["labels", "head"] if framework == "supervised" else ["labels", "unlabeled", "head"])
    for run in runs.values():
        assert 0 <= run["miou"] <= 100
        assert 0 <= run["boundary_miou"] <= 100
        assert run["seconds"] > 0
        assert run["peak_memory_mb"] > 0
        assert len(run["iou"]) == 11
    last, name = list(runs)[-2], f"{list(runs)[-2]} to head"
    assert metrics["difference"][name]["miou"] == pytest.approx(runs["head"]["miou"] - runs[last]["miou"])
    printed = capsys.readouterr().out
    assert "The head: mIoU" in printed
    assert ("Unlabeled images: mIoU" in printed) == (framework != "supervised")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (6.56, 6.64, "mIoU stays at 6.6"),
        (6.64, 6.66, "mIoU up from 6.6 to 6.7 (+0.1)"),
        (50.04, 47.96, "mIoU down from 50.0 to 48.0 (-2.0)"),
    ],
)
def test_printed_numbers_add_up(before, after, said):
    assert report.change("mIoU", before, after) == said


def test_a_new_demo_leaves_nothing_of_the_last(tmp_path, here, monkeypatch):
    folder = tmp_path / "digits-u2pl-0"
    folder.mkdir()
    old = [folder / name for name in ("report.png", "metrics.json", "labels.pt", "head.result.pt", "unlabeled.pt")]
    for path in (*old, folder / "notes.txt"):
        path.write_text("old")

    def interrupted(*_):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(demo, "run_apart", interrupted)
    assert demo.main(["--framework", "u2pl", *SMALL, "--out", str(tmp_path)]) == 130
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_finished_training_is_not_trained_again(tmp_path, monkeypatch):
    choices = tiny("u2pl", 2)
    checkpoint = tmp_path / "a.pt"
    result = train(choices, False, checkpoint)
    save_atomically({"recipe": choices.to_dict(), "result": result}, apart.result_of(checkpoint))
    monkeypatch.setattr(apart, "train", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(apart.multiprocessing, "get_context", lambda *_: pytest.fail("started a process"))
    (found,) = apart.run_apart(choices, False, checkpoint, True, "cpu")
    assert same(found, result)
    with pytest.raises(ValueError, match="cannot resume, epoch_steps was 2 and is now 3"):
        next(apart.run_apart(tiny("u2pl", 3), False, checkpoint, True, "cpu"))


@pytest.mark.skipif(os.name == "nt", reason="sends the signal of Ctrl-C on POSIX")
@needs_transformers
def test_ctrl_c_ends_a_demo_at_once(tmp_path):
    command = [sys.executable, "-m", "brpg_lib.cli", "demo", *SMALL, "--steps", "100000", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # tests in the background ignore it
    )
    checkpoint = tmp_path / "digits-mean_teacher-0"
    deadline = time.monotonic() + 60
    while not checkpoint.is_dir() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)  # the training process starts meanwhile
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    started = time.monotonic()
    try:
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert time.monotonic() - started < 3
    assert process.returncode == 130
    assert error.decode().strip() == "brpg demo: interrupted; --resume goes on from the last checkpoint"


DEAF = """
import multiprocessing, signal
from brpg_lib.examples.training import apart

def tell(sender):
    sender.send(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=tell, args=(sender,))
    with apart._interrupts_withheld():
        process.start()
    print(receiver.recv())
    process.join()
"""


def test_the_first_training_process_is_deaf_to_ctrl_c(tmp_path):
    """What the first one starts beside it, multiprocessing's tracker of resources, must not undo that."""
    (tmp_path / "deaf.py").write_text(DEAF)
    done = subprocess.run([sys.executable, "deaf.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("with_head", [False, True])
def test_resume_equals_uninterrupted(framework, with_head, tmp_path):
    def stop(iteration):
        if iteration == 8:
            raise KeyboardInterrupt

    choices = tiny(framework)
    whole = train(choices, with_head, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train(choices, with_head, tmp_path / "cut.pt", progress=stop)
    torch.rand(7)
    resumed = train(choices, with_head, tmp_path / "cut.pt", resume=True)
    for name in whole.keys() - {"seconds", "peak_memory"}:
        assert same(whole[name], resumed[name]), name


def test_resume_with_other_settings_is_refused(tmp_path):
    train(tiny("u2pl", 2), False, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="cannot resume, epoch_steps was 2 and is now 3"):
        train(tiny("u2pl", 3), False, tmp_path / "a.pt", resume=True)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_runs_are_the_same_until_the_head_has_a_say(framework, tmp_path):
    choices = tiny(framework, 20)
    without = train(choices, False, tmp_path / "a.pt")
    with_head = train(choices, True, tmp_path / "b.pt")
    begin = dict(map(reversed, with_head["phases"]))["learn"]  # its loss moves the weights of the step after
    assert begin > 4
    for name, values in without["losses"].items():
        early = [value for value in values if value[0] <= begin + 1]
        assert early == with_head["losses"][name][: len(early)]


def test_shared_weights_start_equal():
    choices = tiny("u2pl")
    without, with_head = (
        build(choices, 11, 12, schedule).model.state_dict() for schedule in (None, choices.schedule(12))
    )
    assert all(torch.equal(value, with_head[name]) for name, value in without.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "camvid"], "camvid needs root"),
        (["--data", "camvid", "--root", "/nowhere"], "root: no such directory: /nowhere"),
        (["--data", "folder", "--root", "."], "folder needs num_classes"),
        (["--steps", "0"], "epoch_steps: expected at least 1, found 0"),
        (["--device", "nonsense"], "--device: nonsense cannot be used"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, capsys):
    assert demo.main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_error_of_the_training_process_is_told(tmp_path, capsys):
    out = ["--out", str(tmp_path), "--device", "cpu", "--batch-size", "2"]
    folder = tmp_path / "digits-u2pl-0"
    folder.mkdir()
    train(tiny("supervised", 2), False, folder / "labels.pt")
    assert demo.main([*out, "--framework", "u2pl", "--network", "compact", "--steps", "3", "--resume"]) == 2
    assert "cannot resume" in capsys.readouterr().err


def test_quickstart(monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "STEPS", 10)
    quickstart.main()
    assert "of 11 classes" in capsys.readouterr().out
