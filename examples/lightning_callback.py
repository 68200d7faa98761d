"""Lightning: a callback adds the head to a LightningModule that stays as it is (``lightning_unchanged.py`` has one)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from brpg_lib import FeatureTap, LabeledBatch, ProjectionHead, PrototypeHead, UnlabeledBatch

Batches = Callable[[Any, list[Tensor], list[Tensor]], tuple[LabeledBatch, UnlabeledBatch | None]]
"""Makes the head's batches of the trainer's batch, and of projected features and logits of each forward pass."""


class PrototypeCallback(Callback):  # type: ignore[misc]
    """Adds the head's loss to what ``training_step`` returns, logs its metrics, and saves it in the checkpoint.

    Args:
        head: The head; on several ranks its parts talk to each other by themselves.
        projection: Maps the layer's features to those of the head. It becomes ``brpg_projection`` of the module, so
            that DDP, the optimizer and the checkpoint have it.
        batches: See :data:`Batches`.
        layers: Names of the layers that put out features and logits, both at low resolution.
        passes: Forward passes through them in a ``training_step``.
    """

    def __init__(
        self,
        head: PrototypeHead,
        projection: ProjectionHead,
        batches: Batches,
        layers: tuple[str, str],
        passes: int = 1,
    ) -> None:
        self.head, self.projection, self.batches, self.layers, self.passes = head, projection, batches, layers, passes

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Before optimizers and wrappers are made, and checkpoints loaded."""
        if not module.automatic_optimization:
            raise ValueError("automatic_optimization: expected True, or a training_step that calls the head itself")
        module.brpg_projection = self.projection

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Takes its place in the module."""
        self.head.to(module.device)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        known = {id(parameter) for group in groups for parameter in group["params"]}
        if not all(id(parameter) in known for parameter in self.projection.parameters()):
            trainer.optimizers[0].add_param_group({"params": list(self.projection.parameters())})
        self.taps = [FeatureTap(module, layer).open() for layer in self.layers]
        step = module.training_step

        @functools.wraps(step)
        def with_head(batch: Any, *arguments: Any) -> Any:
            found = step(batch, *arguments)
            if found is None:  # the step is left out
                for tap in self.taps:
                    tap.open()  # from nothing
                return None
            features, logits = (tap.take(self.passes) for tap in self.taps)
            out = self.head(*self.batches(batch, [self.projection(maps) for maps in features], logits))
            module.log_dict({f"brpg/{name}": value for name, value in {"loss": out.loss, **out.metrics}.items()})
            if isinstance(found, dict):
                return found | {"loss": found["loss"] + out.loss}
            return found + out.loss

        module.training_step = with_head

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Leaves the module as it was, but for the projection."""
        module.__dict__.pop("training_step", None)
        for tap in self.__dict__.pop("taps", []):
            tap.close()

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"head": self.head.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.head.load_state_dict(state_dict["head"])
