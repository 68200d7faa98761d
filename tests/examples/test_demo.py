import json

import pytest
import torch

from brpg_lib.examples import demo, quickstart
from brpg_lib.examples.data import digits
from brpg_lib.examples.settings import FRAMEWORKS, Settings
from brpg_lib.examples.trainers.build import build
from brpg_lib.examples.trainers.loop import train


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(digits, "SCENES", {"labeled": 8, "unlabeled": 8, "test": 6})


@pytest.fixture
def here(monkeypatch):
    """Trains in this process: starting others takes seconds."""

    def run(choices, with_head, checkpoint, resume):
        yield train(choices, with_head, checkpoint, resume)

    monkeypatch.setattr(demo, "run_apart", run)


def tiny(framework, **overrides):
    choices = {"iterations": 12, "size": 33, "batch_size": 2, "width": 8, "feature_dim": 8}
    return Settings(framework, "digits", 0, **(choices | overrides))


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_demo_writes_report_and_metrics(framework, tmp_path, here, capsys):
    arguments = ["--framework", framework, "--iters", "12", "--batch-size", "2", "--device", "cpu"]
    assert demo.main([*arguments, "--out", str(tmp_path)]) == 0
    folder = tmp_path / f"digits-{framework}-0"
    assert (folder / "report.png").stat().st_size > 10_000
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["runs"]) == {"baseline", "head"}
    for run in metrics["runs"].values():
        assert 0 <= run["miou"] <= 100
        assert 0 <= run["boundary_miou"] <= 100
        assert run["seconds"] > 0
        assert run["peak_memory_mb"] > 0
        assert len(run["iou"]) == 11
    difference = metrics["runs"]["head"]["miou"] - metrics["runs"]["baseline"]["miou"]
    assert metrics["difference"]["miou"] == pytest.approx(difference)
    assert "mIoU" in capsys.readouterr().out


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
    train(tiny("u2pl", iterations=2), False, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="cannot resume, iterations was 2 and is now 3"):
        train(tiny("u2pl", iterations=3), False, tmp_path / "a.pt", resume=True)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_runs_are_the_same_until_the_head_has_a_say(framework, tmp_path):
    choices = tiny(framework, iterations=20)
    without = train(choices, False, tmp_path / "a.pt")
    with_head = train(choices, True, tmp_path / "b.pt")
    quiet = with_head["phases"].index("learn") + 1  # the first loss of the learn phase moves the next step's weights
    assert quiet > 4  # the steps before include some with every loss of the baseline
    for name, values in without["history"].items():
        early = [value for value in values if value[0] < quiet]
        assert early == with_head["history"][name][: len(early)]


def test_shared_weights_start_equal():
    choices = tiny("u2pl")
    without, with_head = (
        build(choices, 11, choices.iterations, schedule, choices.width).model.state_dict()
        for schedule in (None, choices.schedule)
    )
    assert all(torch.equal(value, with_head[name]) for name, value in without.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "camvid"], "camvid needs root"),
        (["--data", "camvid", "--root", "/nowhere"], "root: no such directory: /nowhere"),
        (["--data", "folder", "--root", "."], "folder needs num_classes"),
        (["--iters", "0"], "--iters: expected at least 1, found 0"),
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
    train(tiny("u2pl", iterations=2), False, folder / "baseline.pt")
    assert demo.main([*out, "--iters", "3", "--resume"]) == 2
    assert "cannot resume" in capsys.readouterr().err


def test_quickstart(monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "STEPS", 10)
    quickstart.main()
    assert "of 11 classes" in capsys.readouterr().out
