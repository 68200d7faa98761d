"""What the head adds to a step of a real training: seconds and memory, of the projection branch and of the head."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.benchmarks import command
from brpg_lib.benchmarks import tables as show
from brpg_lib.benchmarks.command import Options, Progress, Result
from brpg_lib.benchmarks.measure import Clock, Run, Timing, race
from brpg_lib.benchmarks.networks import network
from brpg_lib.benchmarks.presets import Preset
from brpg_lib.benchmarks.step import Inputs, learning_head
from brpg_lib.benchmarks.tables import Table
from brpg_lib.examples.training.data.augment import cutmix, cutmix_boxes
from brpg_lib.examples.training.data.batches import Batch
from brpg_lib.examples.training.frameworks.base import Trainer
from brpg_lib.examples.training.frameworks.u2pl import U2PLTrainer
from brpg_lib.examples.training.frameworks.unimatch import UniMatchTrainer

TRAINERS: dict[str, type[Trainer]] = {"u2pl": U2PLTrainer, "unimatch": UniMatchTrainer}
BASELINE, BRANCH, HEAD = "without", "projection branch only", "with the head"
CROPS = {"full": 321, "quick": 97, "tiny": 33}
IMAGES = {"cpu": 2, "cuda": 8}
ITERATIONS, ITERATION = 10, 5
"""A step from the middle of a training, when every loss is switched on."""


@dataclass
class Nothing:
    """The loss of a head that does nothing."""

    loss: Tensor


class BranchOnly(nn.Module):
    """In place of the head: the gradient of its loss is zero, but goes all the way through the projection branch."""

    samples_weak_views = False

    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Nothing:
        """A loss of 0."""
        return Nothing(0.0 * (labeled.features.float().mean() + unlabeled.features.float().mean()))


def batch(preset: Preset, strong_views: int, device: torch.device) -> Batch:
    """Random images."""
    generator = torch.Generator().manual_seed(0)
    count, size = preset.images, preset.crop
    images, weak, *strong = (torch.rand(count, 3, size, size, generator=generator) for _ in range(2 + strong_views))
    boxes = torch.stack([cutmix_boxes(count, size) for _ in range(strong_views)])
    mixed = torch.stack([cutmix(view, box) for view, box in zip(strong, boxes, strict=True)])
    labels = torch.randint(preset.num_classes, (count, size, size), generator=generator)
    nowhere = torch.zeros_like(labels, dtype=torch.bool)
    return Batch(images, labels, weak, mixed, boxes, nowhere, torch.get_rng_state()).to(device)


def training_step(kind: type[Trainer], variant: str, preset: Preset, options: Options) -> Run:
    """A whole step, optimizer included."""
    tiny, device = options.size == "tiny", options.device
    model = network(preset.num_classes, None if variant == BASELINE else preset.feature_dim, tiny)
    head: Any = None if variant == BASELINE else BranchOnly()
    if variant == HEAD:
        head = learning_head(preset, Inputs.random(replace(preset, crop=33), device))
    trainer = kind(model, head, ITERATIONS, seed=0).to(device).train()
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e-3, momentum=0.9)
    data = batch(preset, kind.strong_views, device)

    def run(clock: Clock) -> None:
        clock.start()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.amp):
            loss, _ = trainer.step(data, ITERATION)
        loss.backward()
        optimizer.step()
        trainer.after_step(ITERATION)
        optimizer.zero_grad(set_to_none=True)

    return run


def beginning_with(name: str, progress: Progress) -> Progress:
    """Progress that says of what."""
    return lambda text: progress(f"{name}, {text}")


def measure(options: Options, progress: Progress) -> Result:
    """Both trainers, without, with the branch, and with the head."""
    images = options.preset.images if options.size == "tiny" else IMAGES[options.device.type]
    preset = replace(options.preset, crop=CROPS[options.size], images=images)
    found: dict[str, Any] = {}
    for name, kind in TRAINERS.items():
        runs = {variant: training_step(kind, variant, preset, options) for variant in (BASELINE, BRANCH, HEAD)}
        timings = race(runs, options.device, options.repeats, beginning_with(name, progress), lead_in=True)
        found[name] = {variant: timing.summary() for variant, timing in timings.items()} | shares(timings)
    model = "a tiny network" if options.size == "tiny" else "DeepLabV3 with ResNet-50"
    return {"network": model, "crop": preset.crop, "images": images, "trainers": found}


def shares(timings: dict[str, Timing]) -> dict[str, float]:
    """What the branch, the head and both add to a step, in percent of the step without.

    Runs of one round are compared with each other, as a busy machine slows neighbours down alike.
    """
    if any(timing.failure is not None for timing in timings.values()):
        return {}
    rounds = zip(*([run["total"] for run in timings[v].runs] for v in (BASELINE, BRANCH, HEAD)), strict=True)
    percent = [[100 * (branch / without - 1), 100 * (head / without - 1)] for without, branch, head in rounds]
    branch, both = (statistics.median(values) for values in zip(*percent, strict=True))
    return {"branch_percent": branch, "head_percent": both - branch, "overhead_percent": both}


def tables(result: Result) -> list[Table]:
    """One row per trainer."""
    precision = "bfloat16 autocast" if result["setup"]["amp"] else "float32"
    table = Table(
        f"One training step of {result['network']}: {result['images']} + {result['images']} images of "
        f"{result['crop']}x{result['crop']}, {precision}",
        ("", "without", "with the head", "overhead", "of it branch", "of it head", "without, range", "memory without",
         "branch", "head"),
    )  # fmt: skip
    for name, trainer in result["trainers"].items():
        failures = {v: trainer[v]["failure"] for v in (BASELINE, BRANCH, HEAD) if "failure" in trainer[v]}
        table.notes += [f"{name}, {variant} failed: {reason}" for variant, reason in failures.items()]
        if failures:
            table.rows.append([name, "failed", *[""] * 8])
            continue
        memory = [trainer[variant]["extra_bytes"] for variant in (BASELINE, BRANCH, HEAD)]
        without, *more = memory
        table.rows.append([
            name, *(show.seconds(trainer[variant]["seconds"]) for variant in (BASELINE, HEAD)),
            *(f"{trainer[part]:+.1f}%" for part in ("overhead_percent", "branch_percent", "head_percent")),
            f"{show.seconds(trainer[BASELINE]['fastest'])} to {show.seconds(trainer[BASELINE]['slowest'])}",
            show.bytes_(without),
            *(show.difference(after, before) for before, after in zip(memory, more, strict=False)),
        ])  # fmt: skip
    table.notes.append("Memory: peak of a step above the level before it, then what branch and head add to it.")
    table.notes.append("Overhead: median over rounds, of runs in one round; as uncertain as the range of the runs "
                       "without the head is wide.")  # fmt: skip
    return [table]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    command.with_quiet_threads()
    sys.exit(main())
