"""A trained network, with its prototypes, from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from brpg_lib import PrototypeBank
from brpg_lib.examples.training.build import network_of
from brpg_lib.examples.training.networks.base import Segmenter
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.inspection.record import heads_in, load_checkpoint
from brpg_lib.validation import as_value_errors

AVERAGE = "average."


@dataclass(frozen=True)
class Trained:
    """What predicts.

    Attributes:
        recipe: That it was trained with.
        class_names: One per class.
        network: The moving average that was validated, in eval mode.
        bank: The prototypes of the head; None without a head, or before it had any.
    """

    recipe: Recipe
    class_names: tuple[str, ...]
    network: Segmenter
    bank: PrototypeBank | None

    def to(self, device: torch.device) -> Trained:
        """The same on a device."""
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.bank is not None:
            self.bank.to(device)
        return self


def load_trained(path: Path) -> Trained:
    """Reads what ``brpg train`` (``last.pt``, ``best.pt``) or ``brpg demo`` has written.

    Raises:
        ValueError: It is something else, or was written before checkpoints said all that is needed.
        OSError: There is no such file.
    """
    saved = load_checkpoint(path)
    weights = _weights(saved)
    if weights is None:
        raise ValueError(f"{path}: expected a checkpoint of brpg train or brpg demo (last.pt, best.pt), found another")
    if "class_names" not in saved:
        raise ValueError(
            f"{path}: written by an older version of brpg-lib, without the names of the classes; "
            "start its brpg train again with --resume, which writes last.pt anew"
        )
    names = tuple(map(str, saved["class_names"]))
    with as_value_errors(f"{path}: "):
        recipe = Recipe(**saved["recipe"])
    represents = any(key.startswith("projection.") for key in weights)
    network = network_of(recipe, len(names), represents, pretrained=False)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights are not those of a {recipe.network} as it is built now") from error
    heads = [head for head in heads_in(saved) if bool(head.mask.any())]
    return Trained(recipe, names, network.eval(), heads[0].bank() if heads else None)


def _weights(saved: Any) -> dict[str, Any] | None:
    """Of the moving average; None where there are none."""
    if not isinstance(saved, Mapping) or "recipe" not in saved:
        return None
    if "model" in saved:
        return dict(saved["model"])
    trainer = saved.get("parts", {}).get("trainer", {})
    found = {name.removeprefix(AVERAGE): value for name, value in trainer.items() if name.startswith(AVERAGE)}
    return found or None
