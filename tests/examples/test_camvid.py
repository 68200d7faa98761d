"""Real photographs: the partitions are what they promise, and a training on them with the head learns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from brpg_lib.examples.training.data.camvid import CLASS_NAMES, load_camvid
from brpg_lib.examples.training.loop import Run
from brpg_lib.examples.training.processes import Processes
from brpg_lib.examples.training.recipe import Recipe

pytestmark = pytest.mark.data


@pytest.fixture
def root() -> Path:
    return Path(os.environ["BRPG_CAMVID"])


@pytest.mark.parametrize("labels", [6, 12])
@pytest.mark.parametrize("seed", range(6))
def test_few_labels_show_every_class(root: Path, labels: int, seed: int) -> None:
    data = load_camvid(root, f"few_{labels}_seed{seed}")
    assert [len(part) for part in (data.labeled, data.unlabeled, data.test)] == [labels, 367 - labels, 101]
    shown = torch.cat([data.labeled[i][1].flatten() for i in range(labels)]).long().bincount(minlength=256)
    assert shown[: len(CLASS_NAMES)].min() >= 400
    assert shown[len(CLASS_NAMES) : 255].sum() == 0


@pytest.mark.parametrize("framework", ["mean_teacher", "u2pl", "unimatch"])
def test_a_short_training_with_the_head(root: Path, tmp_path: Path, framework: str) -> None:
    """From warm-up to the learn phase, in which the pull towards the prototypes makes points fit them better."""
    recipe = Recipe(
        data="camvid",
        root=str(root),
        split="few_6_seed0",
        framework=framework,
        network="compact",
        pretrained=False,
        size=65,
        short_side=90,
        batch_size=4,
        epochs=1,
        epoch_steps=120,
        supervised_epochs=0.25,
        warmup=0.2,
        collect=0.1,
        feature_dim=16,
        learning_rate=3e-3,
        new_factor=1.0,
        head={"preset": "small_data", "queue_size": 500},
    )
    run = Run(recipe, True, tmp_path / "last.pt", Processes(0, 1, torch.device("cpu")), workers=0)
    run.train(lambda _: None)
    head = run.trainer.head
    assert head is not None
    seen = head.seen.nonzero()[:, 0].tolist()
    assert len(seen) == len(CLASS_NAMES)
    assert sum(head.bank.present) >= 4
    losses = [value for _, value in run.record.losses["prototype"] if value > 0]
    assert len(losses) > 20
    assert sum(losses[-10:]) < sum(losses[:10])
    assert run.record.validations[-1]["miou"] > 10, "percent; one class everywhere has 4 at most"
