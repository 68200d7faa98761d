"""Compact semi-supervised trainers by name, and the loops that run them."""

from __future__ import annotations

from brpg_lib.examples.training.frameworks.base import Trainer
from brpg_lib.examples.training.frameworks.mean_teacher import MeanTeacherTrainer
from brpg_lib.examples.training.frameworks.supervised import SupervisedTrainer
from brpg_lib.examples.training.frameworks.u2pl import U2PLTrainer
from brpg_lib.examples.training.frameworks.unimatch import UniMatchTrainer

TRAINERS: dict[str, type[Trainer]] = {
    "mean_teacher": MeanTeacherTrainer,
    "u2pl": U2PLTrainer,
    "unimatch": UniMatchTrainer,
    "supervised": SupervisedTrainer,
}
