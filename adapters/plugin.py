"""What a patched script holds: the head, the projection, and what it hears of the networks."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from brpg_lib import LabeledBatch, Phase, ProjectionHead, UnlabeledBatch
from brpg_lib.distributed import rank, world_size
from brpg_lib.validation import require

from . import results
from .dropout import own_dropout
from .listening import Listener
from .settings import PREFIX, read_section
from .state_files import read_state, states_beside, write_state

PATIENCE = 10
"""Losses in a row that no backward pass reaches, before that is an error."""


class Writer(Protocol):
    """A TensorBoard writer."""

    def add_scalar(self, tag: str, value: float, step: int) -> object:
        """Log one number."""


class Plugin(Listener):
    """Holds all that a patched script adds, as the yaml's ``brpg:`` section says.

    With ``enabled: false`` it holds nothing and changes nothing; the script guards the lines that use the head with
    ``if brpg.enabled``. With ``loss_weight: 0`` all is as with a head, and the script's own losses and weights are, bit
    for bit, those of a training without: nothing here draws from the global generators.

    Args:
        section: The yaml's ``brpg:`` section, or ``None``. See :func:`~brpg_lib.adapters.settings.read_section`.
        dataset: The script's name of the dataset, which chooses the preset.
        num_classes: Number of classes C.
        feature_dim: Channels D of the features, unless the section says otherwise.
        epochs: Epochs of the training.
        iters_per_epoch: Iterations of one epoch.
        ignore_index: Label of pixels without a class.
        logger: Told by rank 0 when a phase begins.

    Raises:
        ValueError: The section has an unknown key or a value out of range.
    """

    def __init__(
        self,
        section: Mapping[str, Any] | None,
        *,
        dataset: str,
        num_classes: int,
        feature_dim: int,
        epochs: float,
        iters_per_epoch: int,
        ignore_index: int = 255,
        logger: logging.Logger | None = None,
    ) -> None:
        settings = read_section(
            section,
            dataset=dataset,
            epochs=epochs,
            iters_per_epoch=iters_per_epoch,
            feature_dim=feature_dim,
            ignore_index=ignore_index,
        )
        super().__init__(enabled=settings is not None)
        self._section = dict(section or {})
        self._logger = logger if rank() == 0 else None
        self._scalars: dict[str, Tensor] = {}
        self._unused_losses = 0
        self._phase: Phase | None = None
        if settings is None:
            return
        self._settings = settings
        self.head = settings.build(num_classes, prefix=PREFIX)

    @property
    def counts(self) -> bool:
        """Whether the head's loss is part of the training's: it is enabled, with a weight above 0."""
        return self.enabled and self._settings.config.loss_weight > 0

    def add_projection(self, in_channels: int, group: dict[str, Any], *, teacher: bool = False) -> None:
        """Add the representation branch, trained by the script's optimizer in one of its groups.

        It stands in its own DistributedDataParallel: the script's networks, and what it does to all of their parameters
        and buffers, stay as they are.

        Args:
            in_channels: Channels of the decoder's features.
            group: The optimizer's group of the decoder. The script goes on setting its learning rate. With weight 0
                nothing joins it.
            teacher: Keep an EMA copy for the teacher's features, moved by :meth:`update_teacher`.
        """
        if not self.enabled:
            return
        device = group["params"][0].device
        with torch.random.fork_rng(devices=[]):  # the script's own draws stay those of a run without the plug-in
            torch.default_generator.manual_seed(self._settings.seed)  # torch.manual_seed would seed CUDA too
            projection: nn.Sequential = ProjectionHead(in_channels, self._settings.feature_dim)
        if device.type == "cuda":
            projection = nn.SyncBatchNorm.convert_sync_batchnorm(projection)
        projection = projection.to(device)
        if teacher:
            self.teacher_projection = copy.deepcopy(projection).eval().requires_grad_(False)
        self.projection = own_dropout(projection, self._settings.seed)
        if self.counts:  # or a script that scales or clips gradients together would see more of them
            group["params"].extend(self.projection.parameters())
        self._parallel: list[nn.Module] = [self.projection]  # in a list, to keep the wrapper's names out of the state
        if world_size() > 1:
            ids = [device.index] if device.type == "cuda" else None
            wrapper = nn.parallel.DistributedDataParallel(self.projection, device_ids=ids)
            self._parallel = [wrapper]

    def project(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Representations ``(B, D, h, w)`` of the student's feature maps, in one pass."""
        # in one pass, in the projection's precision: where the script's passes are autocast, maps may have half of it
        dtype = next(self.projection.parameters()).dtype
        together: Tensor = self._parallel[0](torch.cat([self._apart(part) for part in maps]).to(dtype))
        parts: tuple[Tensor, ...] = together.split([len(part) for part in maps])
        return parts

    def _apart(self, features: Tensor) -> Tensor:
        """The script's features; with weight 0 outside its graph, where even gradients of 0 can change the last digits.

        What they are added to may come in another memory layout, and so take another way through the layers below.
        """
        return features if self.counts else features.detach().requires_grad_()

    def weak_view(self, features: Tensor, logits: Tensor, valid: Tensor | None = None) -> dict[str, Tensor | None]:
        """The weak view's fields of an :class:`UnlabeledBatch`; none in steps that sample nothing, to save the work.

        Args:
            features: ``(B, in_channels, h, w)`` decoder features.
            logits: ``(B, C, h, w)``.
            valid: ``(B, H, W)`` bool, False in padding.
        """
        if not self.head.samples_weak_views:
            return {}
        projection = getattr(self, "teacher_projection", self.projection)
        training = projection.training
        with torch.no_grad():
            weak_features = projection.eval()(features.to(next(projection.parameters()).dtype))
        projection.train(training)
        return {"weak_features": weak_features, "weak_logits": logits.detach(), "weak_valid": valid}

    @torch.no_grad()
    def update_teacher(self, ratio: float) -> None:
        """Move the teacher's projection: ``ratio`` of it stays, the rest is the student's.

        Raises:
            ValueError: ``ratio`` is not from 0 to 1.
        """
        if not self.enabled:
            return
        require(0 <= ratio <= 1, "ratio", "the share of the teacher that stays, from 0 to 1", ratio)
        student = self.projection.state_dict()
        for name, kept in self.teacher_projection.state_dict().items():
            if kept.is_floating_point():
                kept.lerp_(student[name], 1 - ratio)
            else:
                kept.copy_(student[name])

    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None = None, *, iteration: int) -> Tensor:
        """The weighted prototype loss of a step, to be added to the script's own; 0 before the learn phase."""
        if self._unused_losses == PATIENCE:
            raise RuntimeError(
                f"brpg: its last {PATIENCE} losses were in no backward pass; add them to yours before it"
            )
        if not hasattr(self, "projection"):
            labeled = replace(labeled, features=self._apart(labeled.features))
            unlabeled = unlabeled and replace(unlabeled, features=self._apart(unlabeled.features))
        output = self.head(labeled, unlabeled, iteration=iteration)
        if output.loss.requires_grad:
            self._unused_losses += 1
            output.loss.register_hook(self._note_use)
        self._scalars = {"loss": output.loss.detach(), **output.metrics}
        self._announce(output.phase, iteration)
        return output.loss

    def _note_use(self, gradient: Tensor) -> None:
        self._unused_losses = 0

    def _announce(self, phase: Phase, iteration: int) -> None:
        if self._logger is not None and phase is not self._phase:
            bank = self.head.bank
            classes = f"{int(bank.mask.any(2).any(1).sum())} of {self.head.num_classes} classes"
            what = {
                Phase.WARMUP: "warm-up",
                Phase.COLLECT: "collecting features",
                Phase.LEARN: f"learning with {int(bank.mask.sum())} prototypes of {classes}",
            }
            self._logger.info(f"brpg: {what[phase]} from iteration {iteration}")
        self._phase = phase

    def scalars(self) -> dict[str, float]:
        """The last step's loss and metrics, named ``brpg/...``; empty before the first step, or without the head."""
        if not self._scalars:
            return {}
        numbers = torch.stack([value.float() for value in self._scalars.values()]).tolist()  # one copy from the device
        return {f"brpg/{name}": number for name, number in zip(self._scalars, numbers, strict=True)}

    def log(self, writer: Writer, iteration: int) -> None:
        """Write the last step's loss and metrics under ``brpg/``."""
        for name, number in self.scalars().items():
            writer.add_scalar(name, number, iteration)

    def record(
        self,
        folder: str | os.PathLike[str],
        epoch: int,
        score: float,
        iou: Mapping[str, float] | None = None,
        *,
        measure: str = "miou",
        settings: Mapping[str, Any],
        split: str | None = None,
        seed: int | None = None,
    ) -> None:
        """Write a validation's scores into ``brpg_result.json``, for ``brpg compare``; also of a training without head.

        Of several processes, the first writes.

        Args:
            folder: Where the script saves.
            epoch: Its count.
            score: The mean over classes, in the script's scale.
            iou: IoU of each class, in the same scale.
            measure: What the score is: ``"miou"`` or ``"dice"``.
            settings: The script's settings; trainings that are compared have to share them.
            split: Which images are labeled.
            seed: Of the script; without, ``brpg: {seed: ...}`` tells repetitions apart.
        """
        if rank():
            return
        about = {
            "made_by": "brpg patch",
            "head": self.enabled,
            "brpg": {name: value for name, value in self._section.items() if name not in ("enabled", "seed")},
            "seed": self._section.get("seed", 0) if seed is None else seed,
            "split": split,
            "settings": results.settings_of(settings),
        }
        results.record(folder, epoch, score, iou or {}, about, measure)

    def save(self, checkpoint: str | os.PathLike[str], epoch: int) -> None:
        """Write the plug-in's state beside the script's checkpoint, before the script writes that.

        ``latest.pth`` gets ``latest.brpg.pth``, and the state before it stays as ``latest.brpg.previous.pth``: a
        training killed between the two writes finds the state that belongs to the checkpoint it has. Each file appears
        whole or not at all.

        Args:
            checkpoint: Where the script saves.
            epoch: What the script calls the epoch in its checkpoint.
        """
        if self.enabled:
            write_state(self.state_dict(), checkpoint, epoch)

    def load(self, checkpoint: str | os.PathLike[str], epoch: int) -> None:
        """Read the state that :meth:`save` wrote with this checkpoint.

        Args:
            checkpoint: What the script resumes from.
            epoch: The epoch in that checkpoint.

        Raises:
            ValueError: There is no state of that epoch, or it is of a head with other settings, or the plug-in is
                disabled and the checkpoint was trained with it.
        """
        files = states_beside(checkpoint)
        fitting = [file for file, found in files.items() if found == epoch]
        place = Path(checkpoint).with_suffix(".brpg.pth")
        if not self.enabled:
            message = f"false, but {Path(checkpoint).name} was trained with the head: enable it, or save elsewhere"
            require(not fitting, "brpg.enabled", "true", message)
            return
        if not fitting:
            names = ", ".join(f"{file.name} of epoch {found}" for file, found in files.items())
            advice = "a copied checkpoint needs its .brpg.pth too, one trained without the head needs enabled: false"
            raise ValueError(f"brpg: expected {place} of epoch {epoch}, found {names or 'none'}; {advice}")
        self.load_state_dict(read_state(fitting[0]))
