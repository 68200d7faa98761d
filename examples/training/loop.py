"""The one training loop: any number of processes, mixed precision, validations, checkpoints."""

from __future__ import annotations

import inspect
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from brpg_lib import HeadOutput, Schedule
from brpg_lib.distributed import all_reduce_sum, require_same_everywhere
from brpg_lib.examples.training.build import build
from brpg_lib.examples.training.checkpoints import read, restore, states, without_rows
from brpg_lib.examples.training.data.batches import BatchSource, Pairs, seed_iteration
from brpg_lib.examples.training.evaluation import score
from brpg_lib.examples.training.frameworks.base import Trainer
from brpg_lib.examples.training.memory import peak_memory
from brpg_lib.examples.training.processes import Processes, average_statistics, first_alone, share_statistics
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.files import save_atomically

READ_EVERY = 50
"""Steps between looks at the losses at most, each of which waits for the GPU."""
READS = 100
"""Looks at the losses in a short training."""
SAVE_EVERY = 1000
"""Steps between checkpoints at most."""
SAVES = 10
"""Checkpoints of a short training."""
TRIAL_STEPS = 2
MAY_CHANGE = ("root", "splits")
"""Fields of a recipe that may differ when a training goes on."""


@dataclass(frozen=True)
class Plan:
    """A recipe's lengths in steps.

    Attributes:
        epoch: Of one epoch.
        epochs: How many there are.
        schedule: The head's phases.
        supervised_only: Share of the steps before pseudo labels teach.
    """

    epoch: int
    epochs: int
    schedule: Schedule
    supervised_only: float

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.epoch * self.epochs


def plan_of(recipe: Recipe, unlabeled: int, trial: bool) -> Plan:
    """Lengths for so many unlabeled images; for a trial, two steps of each phase instead."""
    if trial:
        steps = 3 * TRIAL_STEPS
        schedule = Schedule(warmup=TRIAL_STEPS, collect=TRIAL_STEPS, total=steps)
        return Plan(steps, 1, schedule, TRIAL_STEPS / steps)
    least = math.ceil((recipe.least_steps or 1) / recipe.epochs)
    epoch = recipe.epoch_steps or max(least, unlabeled // recipe.batch_size)
    supervised_only = min(1.0, recipe.supervised_epochs / recipe.epochs)
    return Plan(epoch, recipe.epochs, recipe.schedule(epoch), supervised_only)


@dataclass
class Record:
    """What a training has come to so far.

    Attributes:
        step: Steps done.
        seconds: Time they took.
        peak_memory: In MB.
        losses: ``(step, mean since the last one)`` of each loss.
        metrics: The same of each of the head's :data:`~brpg_lib.output.METRICS`.
        phases: ``(first step, name)`` of the head's phases.
        validations: Scores by epoch.
    """

    step: int
    seconds: float
    peak_memory: float
    losses: dict[str, list[tuple[int, float]]]
    phases: list[tuple[int, str]]
    validations: list[dict[str, Any]]
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """Best mIoU so far; below 0 before the first validation."""
        return max((v["miou"] for v in self.validations), default=-1.0)


class Run:
    """One training.

    Args:
        recipe: What to train.
        with_head: Whether the prototype head takes part.
        last: Where the last checkpoint goes.
        processes: Who shares the work.
        workers: Processes that read images, for each of these.
        best: Where the best model goes, if it is kept.
        validates: Whether scores are taken on the way and at the end.
        trial: Two steps of each phase, and two test images for each process, to see that all is well.

    Raises:
        ValueError: The recipe does not fit the data or the processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        with_head: bool,
        last: Path,
        processes: Processes,
        workers: int,
        *,
        best: Path | None = None,
        validates: bool = True,
        trial: bool = False,
    ) -> None:
        if recipe.batch_size % processes.ranks or recipe.batch_size < 2 * processes.ranks:
            raise ValueError(
                f"batch_size: expected a multiple of the {processes.ranks} processes, with at least 2 images for each "
                f"(CutMix needs another one), found {recipe.batch_size}"
            )
        self.processes, self.workers = processes, workers
        self.last, self.best, self.validates, self.trial = last, best, validates, trial
        with first_alone(processes):
            self.recipe = recipe = recipe.settled()
            self.data = recipe.load_data()
        self.test: Pairs = self.data.test
        if trial:
            self.test = [self.data.test[i] for i in range(min(2 * processes.ranks, len(self.data.test)))]
        self.plan = plan_of(recipe, len(self.data.unlabeled), trial)
        schedule = self.plan.schedule if with_head else None
        self.trainer = build(recipe, len(self.data.class_names), self.plan.steps, schedule)
        self.trainer.supervised_only = self.plan.supervised_only
        device = processes.device
        if processes.ranks > 1 and device.type == "cuda":
            share_statistics(self.trainer)
        self.trainer.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batches = BatchSource(
            self.data,
            recipe.crop,
            recipe.batch_size // processes.ranks,
            recipe.seed,
            self.trainer.strong_views,
            colors=self.trainer.colors if recipe.colors is None else recipe.colors,
            rank=processes.rank,
            ranks=processes.ranks,
        )
        self.optimizer = optimizer_of(recipe, self.trainer)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: poly(step, self.plan.steps, recipe.rise)
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.record = Record(0, 0.0, 0.0, {}, [], [])
        self.unread: dict[str, list[Tensor]] = defaultdict(list)
        self.unread_metrics: dict[str, list[Tensor]] = defaultdict(list)
        if self.trainer.head is not None:
            self.trainer.head.register_forward_hook(self._note_metrics)

    @property
    def parts(self) -> dict[str, Any]:
        """All that changes during the training, by name."""
        return {
            "trainer": self.trainer,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }

    @property
    def _about(self) -> dict[str, Any]:
        """What :func:`~brpg_lib.examples.training.trained.load_trained` builds the network from."""
        return {"recipe": self.recipe.to_dict(), "class_names": list(self.data.class_names)}

    @property
    def phase(self) -> str:
        """The head's, or that there is none."""
        return "no head" if self.trainer.head is None else self.trainer.head.phase.value

    def train(self, progress: Callable[[Run], object]) -> Record:
        """From the step that the record tells to the end.

        Args:
            progress: Told after each step.

        Returns:
            The record, complete.
        """
        device, record, plan = self.processes.device, self.record, self.plan
        wrapped = self._wrapped()
        if record.step == plan.steps:
            self.save()  # as this version of the library writes it
        started = time.perf_counter() - record.seconds
        read_every = max(1, min(READ_EVERY, plan.steps // READS))
        save_every = max(1, min(SAVE_EVERY, plan.steps // SAVES))
        loader = self.batches.loader(range(record.step, plan.steps), self.workers, device)
        for batch in loader:
            step = record.step
            self.trainer.train()
            phase = self.phase
            if not record.phases or record.phases[-1][1] != phase:
                record.phases.append((step, phase))
            seed_iteration(self.recipe.seed, step, self.processes.rank)  # also the GPU's generator
            torch.set_rng_state(batch.random_state)
            with self._precision():
                loss, losses = wrapped(batch.to(device), step)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            self.trainer.after_step(step)
            for name, value in losses.items():
                self.unread[name].append(value.detach())
            record.step = step + 1
            last = record.step == plan.steps
            if record.step % read_every == 0:
                self._read()
            if self.validates and (record.step % (plan.epoch * self.recipe.validate_every) == 0 or last):
                self._validate()
            record.seconds = time.perf_counter() - started
            if record.step % save_every == 0 or record.step % plan.epoch == 0 or last:
                record.peak_memory = max(record.peak_memory, peak_memory(device))
                self.save()
            progress(self)
        return record

    def _wrapped(self) -> nn.Module:
        if self.processes.ranks == 1:
            return self.trainer
        devices = [self.processes.device] if self.processes.device.type == "cuda" else None
        # each process keeps its own running statistics, and they are averaged when they are needed
        known = inspect.signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {"device_ids": devices, option: False}
        return DistributedDataParallel(self.trainer, **options)

    def _precision(self) -> torch.autocast:
        kind: torch.dtype = getattr(torch, self.recipe.precision)
        enabled = kind is not torch.float32
        return torch.autocast(self.processes.device.type, dtype=kind if enabled else None, enabled=enabled)

    def _note_metrics(self, module: nn.Module, arguments: object, out: HeadOutput) -> None:
        """Told by the head what a call gave."""
        if module.training:
            for name, value in out.metrics.items():
                self.unread_metrics[name].append(value)

    def _read(self) -> None:
        if not self.unread:
            return
        kinds = ((self.unread, self.record.losses), (self.unread_metrics, self.record.metrics))
        own = torch.stack([torch.stack(values).mean() for unread, _ in kinds for values in unread.values()])
        means = iter((all_reduce_sum(own) / self.processes.ranks).tolist())
        for unread, histories in kinds:
            for name in unread:
                histories.setdefault(name, []).append((self.record.step, next(means)))
            unread.clear()

    def _validate(self) -> None:
        average_statistics(self.trainer, self.processes.ranks)
        self.trainer.eval()
        names, window = self.data.class_names, self.recipe.window
        with self._precision():
            scores = score(self.trainer.average, self.test, len(names), self.processes, window, self.workers)
        better = scores.miou > self.record.best
        self.record.validations.append(
            {
                "epoch": self.record.step / self.plan.epoch,
                "step": self.record.step,
                "miou": scores.miou,
                "boundary_miou": scores.boundary_miou,
                "iou": dict(zip(names, scores.iou, strict=True)),
                "boundary_iou": dict(zip(names, scores.boundary_iou, strict=True)),
            }
        )
        if better and self.best is not None and self.processes.rank == 0 and not self.trial:
            found = {
                **self._about,
                "model": self.trainer.average.state_dict(),
                "validation": self.record.validations[-1],
            }
            if self.trainer.head is not None:
                found["head"] = without_rows(self.trainer.head.state_dict())
            save_atomically(found, self.best)

    def save(self) -> None:
        """Writes the last checkpoint, unless this is a trial; a kill in between leaves the one before."""
        self._read()
        average_statistics(self.trainer, self.processes.ranks)
        if self.processes.rank == 0 and not self.trial:
            saved = {
                **self._about,
                "epoch": self.plan.epoch,
                "parts": states(self.parts),
                "record": vars(self.record),
            }
            save_atomically(saved, self.last)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint, with any number of processes.

        Raises:
            ValueError: It was made with another recipe, or with a head where there is none now, or without.
        """
        saved = read(path, "recipe", self.recipe.to_dict(), MAY_CHANGE)
        if saved["epoch"] != self.plan.epoch:
            raise ValueError(
                f"{path}: cannot resume, an epoch had {saved['epoch']} steps and has {self.plan.epoch} now; "
                "use the same lists of images"
            )
        had_head = any(key.startswith("head.") for key in saved["parts"]["trainer"])
        if had_head != (self.trainer.head is not None):
            raise ValueError(f"{path}: cannot resume, it was made {'with' if had_head else 'without'} the head")
        restore(self.parts, saved["parts"])
        self.record = Record(**saved["record"])

    def require_agreement(self) -> None:
        """Require that all processes are at the same step.

        Raises:
            ValueError: They are not: some have found a checkpoint, and others none.
        """
        if self.processes.ranks > 1:
            require_same_everywhere({"step": self.record.step, "epoch": self.plan.epoch}, self.processes.device)


def poly(step: int, steps: int, rise: float) -> float:
    """Linear rise over a share of the steps, then polynomial decay of power 0.9."""
    return min(1.0, (step + 1) / max(1.0, rise * steps)) * float(max(0.0, 1 - step / steps) ** 0.9)


def optimizer_of(recipe: Recipe, trainer: Trainer) -> torch.optim.Optimizer:
    """Its two groups are the encoder, and everything else at ``new_factor`` times the learning rate."""
    new = {id(p) for module in trainer.model.new_modules() for p in module.parameters()}
    groups = [
        {"params": [p for p in trainer.model.parameters() if id(p) not in new], "lr": recipe.learning_rate},
        {
            "params": [p for p in trainer.model.parameters() if id(p) in new],
            "lr": recipe.new_factor * recipe.learning_rate,
        },
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay)
