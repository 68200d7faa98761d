"""The head in trainers that stay as they are: Lightning by a callback, Hugging Face's Trainer; and in their logs."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from builders import learning_head, same, state, step
from packages import needs_transformers
from torch import Tensor

from brpg_lib import ProjectionHead, PrototypeHead
from brpg_lib.checkpoint import unpack
from brpg_lib.examples import loggers
from brpg_lib.output import METRICS


@pytest.fixture(autouse=True)
def keep_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


NAMES = {"brpg/loss", *(f"brpg/{name}" for name in METRICS)}


# --- Lightning --------------------------------------------------------------------------------------------------------


@pytest.fixture
def unchanged(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("lightning")
    found = importlib.import_module("brpg_lib.examples.lightning_unchanged")
    monkeypatch.setattr(found, "STEPS", 4)
    return found


def test_the_callback_resumes_exactly_and_logs(unchanged: ModuleType, tmp_path: Path) -> None:
    whole = unchanged.train(tmp_path / "whole")
    unchanged.main(["--folder", str(tmp_path / "cut"), "--stop", "5"])  # in the middle of the collect phase
    torch.rand(3)
    resumed = unchanged.train(tmp_path / "cut", resume=True)
    assert same(state(whole), state(resumed))
    assert any(whole.bank.present)
    assert whole.iteration == 32
    weights = [torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "cut")]
    assert same(*weights)
    (file,) = (tmp_path / "whole").rglob("metrics.csv")
    rows = list(csv.DictReader(file.open()))
    assert set(rows[0]) >= NAMES
    assert float(rows[-1]["brpg/loss"]) > 0


def fit(module: Any, callback: Any, folder: Path, unchanged: ModuleType, **options: Any) -> Any:
    trainer = unchanged.Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, unchanged.digit_loader(3))
    return trainer


def callback_for(unchanged: ModuleType) -> Any:
    head = PrototypeHead(11, 32, unchanged.Schedule(warmup=1, collect=1, total=9), unchanged.CONFIG)
    layers = ("model.classifier.2", "model.classifier")
    return unchanged.PrototypeCallback(head, ProjectionHead(16, 32), unchanged.batches, layers)


def test_the_module_is_left_as_it_was_and_the_projection_learns(unchanged: ModuleType, tmp_path: Path) -> None:
    module, callback = unchanged.Unchanged(), callback_for(unchanged)
    before = [p.detach().clone() for p in callback.projection.parameters()]
    fit(module, callback, tmp_path, unchanged, callbacks=[callback])
    assert callback.head.iteration == 3
    assert "training_step" not in vars(module)
    assert not any(layer._forward_hooks for layer in module.modules())
    assert any(not torch.equal(old, new) for old, new in zip(before, callback.projection.parameters(), strict=True))


def test_what_training_step_may_return(unchanged: ModuleType, tmp_path: Path) -> None:
    class Plain(unchanged.Unchanged):
        def training_step(self, batch: Any, index: int) -> Tensor | None:
            loss: Tensor = super().training_step(batch, index)["loss"]
            return None if index == 1 else loss

    callback = callback_for(unchanged)
    fit(Plain(), callback, tmp_path, unchanged, callbacks=[callback])
    assert callback.head.iteration == 2


def test_manual_optimization_is_refused(unchanged: ModuleType, tmp_path: Path) -> None:
    module = unchanged.Unchanged()
    module.automatic_optimization = False
    callback = callback_for(unchanged)
    with pytest.raises(ValueError, match="automatic_optimization: expected True"):
        fit(module, callback, tmp_path, unchanged, callbacks=[callback])


# --- Hugging Face -----------------------------------------------------------------------------------------------------


@needs_transformers
def test_the_trainer_of_transformers_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = importlib.import_module("brpg_lib.examples.hf_trainer")
    monkeypatch.setattr(example, "STEPS", 16)
    example.main(["--folder", str(tmp_path / "whole")])
    assert "prototypes, of" in capsys.readouterr().out
    example.train(tmp_path / "cut", stop=10)  # in the middle of the collect phase
    torch.rand(3)
    resumed = example.train(tmp_path / "cut", stop=16, resume=True)
    assert resumed.iteration == 16
    heads = [
        torch.load(tmp_path / name / "checkpoint-16" / example.FILE, weights_only=True) for name in ("whole", "cut")
    ]
    assert same(*heads)
    assert same(heads[1], state(resumed))
    files = [(tmp_path / name / "checkpoint-16" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    history = json.loads((tmp_path / "whole" / "checkpoint-16" / "trainer_state.json").read_text())["log_history"]
    logged = [entry for entry in history if "brpg/loss" in entry]
    assert len(logged) == 8
    assert logged[-1].keys() >= NAMES
    assert logged[-1]["brpg/prototypes"] > 0


@needs_transformers
def test_its_evaluation_is_without_the_head(tmp_path: Path) -> None:
    example = importlib.import_module("brpg_lib.examples.hf_trainer")
    arguments = example.TrainingArguments(
        output_dir=str(tmp_path), report_to=[], remove_unused_columns=False, use_cpu=True, disable_tqdm=True
    )
    model, head = example.Segmenter(), learning_head()
    iteration = head.iteration
    trainer = example.PrototypeTrainer(head, model=model, args=arguments, data_collator=example.collate)
    scores = trainer.evaluate(example.DigitViews(4))
    assert scores["eval_loss"] > 0
    assert head.iteration == iteration


# --- Several processes ------------------------------------------------------------------------------------------------

RANK = """
import importlib, os, pathlib, sys, torch
example, folder, steps, options = importlib.import_module(sys.argv[1]), pathlib.Path(sys.argv[2]), *eval(sys.argv[3])
torch.set_num_threads(1)
example.STEPS = steps
torch.save(example.train(folder, **options).state_dict(), folder / f"rank{os.environ['RANK']}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "options", "iterations"),
    [("lightning_unchanged", 4, {"devices": 2}, 16), ("hf_trainer", 16, {"stop": 16}, 16)],
)
def test_two_processes_agree(name: str, steps: int, options: dict[str, int], iterations: int, tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [str(tmp_path / "rank.py"), f"brpg_lib.examples.{name}", str(tmp_path), repr((steps, options))]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*torchrun, *arguments], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert unpack(one["_extra_state"])["iteration"] == iterations
    assert one["bank.mask"].any()
    assert same(one, two)


# --- Loggers ----------------------------------------------------------------------------------------------------------


def test_every_metric_has_one_name() -> None:
    out, *_ = step(learning_head())
    found = loggers.numbers(loggers.named(out))
    assert found.keys() == NAMES
    assert found["brpg/loss"] == out.loss.item()
    assert found["brpg/rows_high"] == out.metrics["rows_high"].item()
    assert all(type(value) is float for value in found.values())


def test_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loggers.main(["--folder", str(tmp_path), "--steps", "30"])
    events = reading.EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == NAMES
    assert [event.step for event in events.Scalars("brpg/prototypes")] == [10, 20, 30]
    assert events.Scalars("brpg/prototypes")[-1].value > 0
    assert "prototypes, of" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_other_loggers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, float], int]] = []

    def log(values: dict[str, float], step: int) -> None:
        logged.append((values, step))

    run = SimpleNamespace(log=log)
    library = SimpleNamespace(
        init=lambda **_: run, start_run=lambda **_: None, set_tracking_uri=lambda _: None, log_metrics=log
    )
    monkeypatch.setitem(sys.modules, name, library)  # type: ignore[arg-type]
    loggers.main(["--to", name, "--folder", str(tmp_path / "new"), "--steps", "10"])
    ((values, at),) = logged
    assert at == 10
    assert values.keys() == NAMES


def test_a_logger_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as end:
        loggers.main(["--to", "mlflow", "--folder", str(tmp_path)])
    assert end.value.code == 2
    assert "pip install mlflow" in capsys.readouterr().err
