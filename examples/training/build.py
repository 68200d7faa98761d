"""Network, head and trainer from what a recipe chooses."""

from __future__ import annotations

import torch

from brpg_lib import PrototypeHead, Schedule
from brpg_lib.examples.training.frameworks import TRAINERS
from brpg_lib.examples.training.frameworks.base import Trainer
from brpg_lib.examples.training.frameworks.losses import LOSSES
from brpg_lib.examples.training.networks import build_network
from brpg_lib.examples.training.networks.base import Segmenter
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.learn.limits import ClassLimits


def build(recipe: Recipe, num_classes: int, steps: int, schedule: Schedule | None) -> Trainer:
    """A trainer on the CPU; the shared weights are the same with and without the head.

    Args:
        recipe: Names and sizes.
        num_classes: C.
        steps: Of the whole training.
        schedule: The head's phases; None builds no head.
    """
    torch.manual_seed(recipe.seed)
    model = network_of(recipe, num_classes, schedule is not None, recipe.pretrained)
    head = None
    if schedule is not None:
        head = PrototypeHead(num_classes, recipe.feature_dim, schedule, recipe.brpg, seed=recipe.seed)
    trainer = TRAINERS[recipe.framework](model, head, steps, recipe.seed)
    trainer.supervised_loss = LOSSES[recipe.loss]
    trainer.second_opinion = recipe.second_opinion
    if recipe.class_share is not None:
        trainer.limits = ClassLimits(num_classes, recipe.class_share)
    return trainer


def network_of(recipe: Recipe, num_classes: int, represents: bool, pretrained: bool) -> Segmenter:
    """The network of a recipe; ``represents``: whether it has the branch that a head needs."""
    stride = 2 if recipe.data == "digits" else 4
    feature_dim = recipe.feature_dim if represents else None
    return build_network(recipe.network, num_classes, feature_dim, pretrained, recipe.width, stride)
