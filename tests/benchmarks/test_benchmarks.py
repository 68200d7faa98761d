"""Every benchmark runs at tiny size and reports what it promises."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from brpg_lib.benchmarks import bench, clustering, command, contenders, features, growth, step, training_overhead
from brpg_lib.benchmarks.measure import QUIET
from brpg_lib.benchmarks.presets import PRESETS, SIZES
from brpg_lib.benchmarks.tables import Table, bytes_, count, difference, seconds
from brpg_lib.cli import main as brpg

TINY = ["--tiny", "--device", "cpu"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if started so: a command that starts itself anew would take the tests with it."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``brpg bench`` writes."""
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        assert brpg(["bench", *TINY, "--out", str(out)]) == 0
    return out


def result(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_numbers_are_finite_and_say_where_they_come_from(folder: Path, name: str) -> None:
    found = result(folder, name)
    assert all(math.isfinite(number) for number in numbers(found))
    assert found["environment"].keys() >= {"date", "device", "threads", "versions", "slowing_variables"}
    assert found["setup"]["size"] == "tiny"
    assert found["setup"]["preset"]["name"] == "voc"


def timed(entry: dict[str, Any]) -> bool:
    return 0 < entry["fastest"] <= entry["seconds"] <= entry["slowest"]


def test_clustering(folder: Path) -> None:
    found = result(folder, "clustering")
    assert found["queue"] == {"groups": 6, "rows": 300, "dim": 16, "bytes": 6 * 300 * 16 * 4}
    assert found["floor"]["seconds"] > 0
    ours = found["contenders"]["brpg-lib, torch"]
    assert timed(ours)
    assert min(ours[key] for key in ("features_per_second", "gb_per_second", "times_floor", "inertia")) > 0
    assert found["contenders"][found["reference"]]["inertia_over_ours"] == 1.0
    published = found["contenders"]["scikit-learn MiniBatchKMeans (published code)"]
    assert 0.9 < published["inertia_over_ours"] < 1.5
    assert 0 <= published["groups_ours_larger"] <= 6
    entered = found["contenders"].keys() | found["missing"].keys()
    assert {contender.name for contender in contenders.CONTENDERS} <= entered
    single = found["iteration"]["torch"]
    assert single.keys() == {str(k) for k in clustering.CLUSTERS}
    assert all(timed(entry) and entry["times_floor"] > 0 for entry in single.values())


def test_missing_contenders_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    absent = contenders.Contender("best-kmeans", "no_such_module", "best-kmeans-cpu", contenders.flash)

    def broken(rows: Any, clusters: Any, gpu: bool) -> Any:
        raise RuntimeError("needs a kernel")

    fails = contenders.Contender("bad-kmeans", "torch", "bad-kmeans", broken)
    monkeypatch.setattr(clustering, "CONTENDERS", (absent, fails))
    assert clustering.main(TINY) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "best-kmeans is not installed: pip install best-kmeans-cpu" in shown
    assert "bad-kmeans failed: RuntimeError: needs a kernel" in shown


def test_step(folder: Path) -> None:
    found = result(folder, "step")
    ours, published = found["steps"][step.OURS], found["steps"][step.PUBLISHED]
    assert timed(ours)
    assert timed(published)
    assert ours["parts"].keys() == {"forward", "backward"}
    assert published["parts"].keys() == {"forward", "backward", "update"}
    for name in ("points_labeled", "points_unlabeled"):
        assert ours[name] == published[name], "both do the same work"
    assert ours["points_unlabeled"] == found["points"]["unlabeled"] == 100
    assert found["points"]["labeled"] == 2 * 9**2
    assert found["gradient_bytes"] == 2 * 2 * 16 * 9 * 9 * 4


def test_both_steps_have_the_same_labeled_loss() -> None:
    preset = PRESETS["voc"].scaled("tiny")
    inputs = step.Inputs.random(preset, torch.device("cpu"))
    head = step.learning_head(preset, inputs)
    # The head has seen one step, in which its prototypes moved.
    head.bank.set(inputs.prototypes, torch.ones(inputs.prototypes.shape[:3], dtype=torch.bool))
    clock = step.Silent(torch.device("cpu"))
    losses = [run(clock)["loss_labeled"] for run in (step.our_step(head, inputs), step.published_step(preset, inputs))]
    torch.testing.assert_close(*losses)


def test_training_overhead(folder: Path) -> None:
    found = result(folder, "training_overhead")
    assert found["trainers"].keys() == {"u2pl", "unimatch"}
    for trainer in found["trainers"].values():
        assert all(timed(trainer[v]) for v in ("without", "projection branch only", "with the head"))
        parts = trainer["branch_percent"] + trainer["head_percent"]
        assert trainer["overhead_percent"] == pytest.approx(parts)
        assert trainer["overhead_percent"] > -100


def test_deeplab_fits_the_trainers() -> None:
    from brpg_lib.benchmarks.networks import network

    model = network(4, 8, tiny=False).eval()
    with torch.no_grad():
        out = model(torch.rand(2, 3, 33, 33), features=1, perturb=torch.Generator())
    assert out.logits.shape == out.perturbed_logits.shape == (2, 4, 33, 33)
    assert out.features.shape == (1, 8, *out.low_logits.shape[2:])


def test_growth(folder: Path) -> None:
    found = result(folder, "growth")
    for cost in ("clustering", "learn step"):
        assert len(found[cost]) == 3
        for line in found[cost].values():
            assert len(line["sizes"]) == len(line["seconds"]) == 5
            assert line["sizes"][-1] / line["sizes"][0] == pytest.approx(10, rel=0.3)
            assert min(line["seconds"]) > 0


def test_the_exponent_of_a_power() -> None:
    summaries = [{"seconds": 0.1 * size**1.5, "extra_bytes": 0} for size in (10, 20, 100)]
    assert growth.curve([10, 20, 100], summaries)["exponent"] == pytest.approx(1.5)
    assert growth.curve([1, 2], [{"seconds": 1.0}, {"failure": "no"}])["failure"] == "no"


def test_the_page(folder: Path) -> None:
    page = (folder / "benchmark.md").read_text()
    for name in bench.BENCHMARKS:
        assert f"({name}.png)" in page
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.png").stat().st_size > 5_000
    assert "published formulation" in page
    for contender in contenders.CONTENDERS:
        assert contender.name in page


@pytest.mark.parametrize("module", [step, growth, training_overhead])
def test_tables_of_what_failed(folder: Path, module: Any) -> None:
    """A failure is shown, whichever contender it hit."""
    found = result(folder, module.__name__.rpartition(".")[2])
    failure = {"failure": "RuntimeError: gone"}
    if module is step:
        found["steps"][step.PUBLISHED] = failure
    elif module is growth:
        found["clustering"]["classes"] = {"sizes": [1, 2]} | failure
    else:
        found["trainers"]["u2pl"]["with the head"] = failure
    assert any("failed: RuntimeError: gone" in note for table in module.tables(found) for note in table.notes)


def test_wrong_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert step.main(["--device", "cuda"]) == 2
    assert "step: --device: there is no CUDA device" in capsys.readouterr().err
    assert bench.main(["--repeats", "0"]) == 2
    assert "--repeats: expected at least 1, found 0" in capsys.readouterr().err


def test_what_was_measured_before_ctrl_c_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(clustering, "measure", lambda *_: result(folder, "clustering"))
    monkeypatch.setattr(step, "measure", stopped)
    assert bench.main([*TINY, "--out", str(tmp_path)]) == 130
    assert "interrupted before the end of step, training_overhead, growth" in capsys.readouterr().err
    assert "(clustering.png)" in (tmp_path / "benchmark.md").read_text()


def test_what_distorts_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    assert step.main(TINY) == 0
    assert "OPENBLAS_L2_SIZE is set" in capsys.readouterr().out


def test_spinning_threads_start_the_program_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(command.os, "execve", lambda *arguments: started.append(arguments))
    command.with_quiet_threads()
    assert not started
    monkeypatch.delenv("OMP_WAIT_POLICY")
    command.with_quiet_threads()
    ((program, arguments, environment),) = started
    assert program == sys.executable
    assert arguments[1:] == sys.orig_argv[1:]
    assert environment["OMP_WAIT_POLICY"] == "passive"


def test_exact_inertia() -> None:
    rows = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 1.0]])
    centroids = torch.tensor([[1.0, 0.0], [10.0, 3.0]])
    assert features.exact_inertia(rows, centroids) == 1 + 1 + 4
    # Float32 would lose what is left beside the distance from the origin.
    assert features.exact_inertia(rows + 2**20, centroids + 2**20) == 6


def test_the_queue() -> None:
    preset = PRESETS["voc"].scaled("tiny")
    rows, clusters = features.queue(preset, torch.device("cpu"))
    assert rows.shape == (6, 300, 16)
    assert clusters.tolist() == [3, 3, 2, 2, 2, 2]
    assert bool((rows >= 0).all())
    assert 0.1 < float((rows == 0).float().mean()) < 0.6, "ReLU"
    assert torch.equal(rows, features.queue(preset, torch.device("cpu"))[0])


def test_presets() -> None:
    assert {name: preset.num_classes for name, preset in PRESETS.items()} == {
        "voc": 21,
        "cityscapes": 19,
        "coco": 81,
        "ade20k": 150,
    }
    assert [PRESETS[name].map_size for name in ("voc", "cityscapes")] == [129, 193]
    for preset in PRESETS.values():
        sizes = [p.num_classes * p.queue_size * p.feature_dim for p in (preset.scaled(size) for size in SIZES)]
        assert sizes == sorted(sizes, reverse=True)


def test_text_of_numbers() -> None:
    assert [seconds(x) for x in (12.34, 0.0123, 4.5e-6)] == ["12.3 s", "12.3 ms", "4.50 µs"]
    assert [bytes_(x) for x in (1.29e9, 3.2e6, None)] == ["1.29 GB", "3.20 MB", "unknown"]
    assert [difference(5e6, 2e6), difference(2e6, 5e6), difference(None, 1.0)] == ["+3.00 MB", "-3.00 MB", "unknown"]
    assert [count(x) for x in (5, 2.5e3, 3e6, 4e9)] == ["5.00", "2.50 k", "3.00 M", "4.00 G"]
    table = Table("T", ("", "a"), [["x|y", "1"]], ["a note"])
    assert table.markdown() == "### T\n\n|  | a |\n| --- | ---: |\n| x\\|y | 1 |\n\n- a note\n"
