"""Network, head and trainer from what a demo or a recipe chooses."""

from __future__ import annotations

import torch

from brpg_lib import PrototypeHead, Schedule
from brpg_lib.examples.networks import build_network
from brpg_lib.examples.recipe import Recipe
from brpg_lib.examples.settings import Settings
from brpg_lib.examples.trainers import TRAINERS
from brpg_lib.examples.trainers.base import Trainer
from brpg_lib.examples.trainers.losses import LOSSES
from brpg_lib.learn.limits import ClassLimits


def build(
    choices: Settings | Recipe, num_classes: int, steps: int, schedule: Schedule | None, width: int = 32
) -> Trainer:
    """A trainer on the CPU; the shared weights are the same with and without the head.

    Args:
        choices: Names and sizes.
        num_classes: C.
        steps: Of the whole training.
        schedule: The head's phases; None builds no head.
        width: Of the compact network.
    """
    torch.manual_seed(choices.seed)
    stride = 2 if choices.data == "digits" else 4
    feature_dim = None if schedule is None else choices.feature_dim
    model = build_network(choices.network, num_classes, feature_dim, choices.pretrained, width, stride)
    head = None
    if schedule is not None:
        head = PrototypeHead(num_classes, choices.feature_dim, schedule, choices.brpg, seed=choices.seed)
    trainer = TRAINERS[choices.framework](model, head, steps, choices.seed)
    trainer.supervised_loss = LOSSES[choices.loss]
    trainer.second_opinion = choices.second_opinion
    if choices.class_share is not None:
        trainer.limits = ClassLimits(num_classes, choices.class_share)
    return trainer
