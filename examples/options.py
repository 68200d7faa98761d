"""What several commands understand on their command line."""

from __future__ import annotations

import argparse
import json
from typing import Any

from brpg_lib.examples.networks import NAMES
from brpg_lib.examples.settings import SIZES, Settings
from brpg_lib.examples.trainers.losses import LOSSES

ITERATIONS = 800
LIGHT = "efficientnet_lite0"
"""The network whose ImageNet weights come with a package."""


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What to train, and how; :func:`chosen` reads it."""
    group = parser.add_argument_group("training")
    group.add_argument("--network", choices=NAMES, default=LIGHT, metavar="NAME",
                       help=f"among {', '.join(NAMES)} (default: %(default)s)")  # fmt: skip
    group.add_argument("--pretrained", action=argparse.BooleanOptionalAction,
                       help=f"start from ImageNet weights (default: {LIGHT} only; others' are a download)")  # fmt: skip
    group.add_argument("--loss", choices=tuple(LOSSES), default=Settings.loss,
                       help="supervised loss (default: %(default)s)")  # fmt: skip
    group.add_argument("--learning-rate", type=float, help="peak (default: 0.001 if pretrained, else 0.006)")
    group.add_argument("--feature-dim", type=int, default=64, help="channels of the head's features (%(default)s)")
    group.add_argument("--size", type=int, help="side of the crops in pixels (default: 65 for digits, 129 otherwise)")
    group.add_argument("--batch-size", type=int, default=8, help="labeled images per step, and unlabeled (%(default)s)")


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of :class:`~brpg_lib.examples.settings.Settings` that these options set."""
    pretrained = arguments.network == LIGHT if arguments.pretrained is None else arguments.pretrained
    rate = arguments.learning_rate
    return {
        "network": arguments.network,
        "pretrained": pretrained,
        "loss": arguments.loss,
        "learning_rate": (1e-3 if pretrained else 6e-3) if rate is None else rate,
        "feature_dim": arguments.feature_dim,
        "size": SIZES[arguments.data] if arguments.size is None else arguments.size,
        "batch_size": arguments.batch_size,
    }


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
