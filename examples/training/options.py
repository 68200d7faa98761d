"""What several commands understand on their command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from brpg_lib.examples.training.data.catalog import DATASETS
from brpg_lib.examples.training.data.folder import REDUCED
from brpg_lib.examples.training.frameworks.losses import LOSSES
from brpg_lib.examples.training.networks import NAMES
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.examples.training.recipe_files import read_recipe

LIGHT = "efficientnet_lite0"
"""The network whose ImageNet weights come with a package."""
FROM_SCRATCH = 0.006
"""Learning rate of a network that starts from random weights."""
PRESETS = {"digits": "few_labels/digits", "folder": "few_labels/folder"}
"""Which preset short trainings on a dataset start from; that of CamVid for all other images."""


def add_mask_options(parser: argparse.ArgumentParser) -> None:
    """What the label images of a folder hold; :func:`mask_changes` reads it."""
    group = parser.add_argument_group("label images of a folder of your own")
    group.add_argument(
        "--num-classes",
        type=int,
        metavar="N",
        help="number of classes: labels are 0..N-1, or 255, ignored (default: from names, values or colors)",
    )
    values = group.add_mutually_exclusive_group()
    values.add_argument(
        "--mask-values",
        metavar="VALUES",
        help="values by class, such as 0,255, or VALUE=CLASS, such as 0=0,255=1,128=ignore,other=0 "
        "(default: masks hold class indices)",
    )
    values.add_argument(
        "--palette",
        metavar="COLORS",
        help="masks in colors: a file of lines NAME=#rrggbb or r,g,b, or these with ';' between (default: no colors)",
    )


def mask_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of a recipe that :func:`add_mask_options` has changed."""
    names = ("num_classes", "mask_values", "palette")
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What to train on, and how; :func:`chosen` reads it."""
    parser.add_argument("--data", choices=DATASETS, default="digits", help="dataset (default: %(default)s)")
    parser.add_argument("--root", help="directory of the dataset (default: none; digits need none)")
    add_mask_options(parser)
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=int, metavar="N", help="of each training (default: 800 for digits, else 1000)")
    group.add_argument("--network", choices=NAMES, default=LIGHT, metavar="NAME",
                       help=f"among {', '.join(NAMES)} (default: %(default)s)")  # fmt: skip
    group.add_argument("--pretrained", action=argparse.BooleanOptionalAction,
                       help=f"start from ImageNet weights (default: {LIGHT} only; others' are a download)")  # fmt: skip
    group.add_argument("--loss", choices=tuple(LOSSES), help="supervised loss (default: half_hard)")
    group.add_argument("--learning-rate", type=float, help="of the encoder, peak (default: 0.0003 if pretrained; else "
                       f"{FROM_SCRATCH:g} for all)")  # fmt: skip
    group.add_argument("--feature-dim", type=int, help="channels of the head's features (default: 64)")
    group.add_argument(
        "--size", type=int, help="side of the crops in pixels (default: 65 for digits, fitting for folder, else 129)"
    )
    group.add_argument("--batch-size", type=int, help="labeled images per step, and unlabeled (default: 8)")
    group.add_argument("--device", help="torch device (default: cuda if there is one, else cpu)")


def chosen(arguments: argparse.Namespace, changes: Mapping[str, Any]) -> Recipe:
    """The preset for few labels with what these options and ``changes`` say.

    Raises:
        ValueError: A value is wrong.
    """
    pretrained = arguments.network == LIGHT if arguments.pretrained is None else arguments.pretrained
    found: dict[str, Any] = {"data": arguments.data, "network": arguments.network, "pretrained": pretrained}
    if arguments.data != "camvid":
        found["split"] = None
    if not pretrained:
        found |= {"learning_rate": FROM_SCRATCH, "new_factor": 1}
    found |= mask_changes(arguments)
    fields = ("root", "loss", "learning_rate", "feature_dim", "size", "batch_size")
    found |= {name: getattr(arguments, name) for name in fields if getattr(arguments, name) is not None}
    if arguments.steps is not None:
        found["epoch_steps"] = arguments.steps
    if arguments.size is not None and arguments.data != "digits":
        found["short_side"] = round(REDUCED * arguments.size)
    return read_recipe(PRESETS.get(arguments.data, "few_labels/camvid"), found | dict(changes))


def setting(text: str) -> tuple[str, Any]:
    """``NAME=VALUE``: a number, true, false, null or a list as JSON writes it, or else a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        if value[:1] in '[{"':
            raise argparse.ArgumentTypeError(f"{name}: {value!r} is not JSON") from None
        return name, value
