"""How the costs of clustering and of the learn step grow with rows, classes, channels and points."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from brpg_lib.benchmarks import clustering, command, features, step
from brpg_lib.benchmarks import tables as show
from brpg_lib.benchmarks.command import Options, Progress, Result
from brpg_lib.benchmarks.measure import Run, race
from brpg_lib.benchmarks.presets import Preset
from brpg_lib.benchmarks.tables import Table
from brpg_lib.kernels import lloyd

FACTORS = (1, 2, 3, 5, 10)
"""Multiples of the smallest size: a decade."""
SMALLEST = {
    # Groups with fewer than 8193 rows skip a stage, and would not lie on one line with larger ones.
    "full": Preset("smallest", num_classes=6, feature_dim=128, queue_size=10000, unlabeled_samples_per_image=400),
    "quick": Preset("smallest", num_classes=4, feature_dim=64, queue_size=10000, unlabeled_samples_per_image=400,
                    crop=257),
    "tiny": Preset("smallest", num_classes=2, feature_dim=4, queue_size=40, unlabeled_samples_per_image=10, crop=33,
                   grid_size=2),
}  # fmt: skip
Scale = Callable[[Preset, int], Preset]


def rows(preset: Preset, factor: int) -> Preset:
    """More features."""
    return replace(preset, queue_size=factor * preset.queue_size)


def classes(preset: Preset, factor: int) -> Preset:
    """More classes."""
    return replace(preset, num_classes=factor * preset.num_classes)


def channels(preset: Preset, factor: int) -> Preset:
    """Longer features."""
    return replace(preset, feature_dim=factor * preset.feature_dim)


def points(preset: Preset, factor: int) -> Preset:
    """More points, labeled and not."""
    return replace(
        preset,
        grid_size=round(preset.grid_size * math.sqrt(factor / FACTORS[-1])),
        unlabeled_samples_per_image=factor * preset.unlabeled_samples_per_image,
    )


CLUSTERING: dict[str, Scale] = {"rows per queue": rows, "classes": classes, "channels": channels}
LEARNING: dict[str, Scale] = {"points": points, "classes": classes, "channels": channels}


def measure(options: Options, progress: Progress) -> Result:
    """Both costs along each of their sizes, the others at their smallest."""
    base = SMALLEST[options.size]
    costs: dict[str, tuple[dict[str, Scale], Callable[[Preset, torch.device], Run]]] = {
        "clustering": (CLUSTERING, clustering_run),
        "learn step": (LEARNING, step_run),
    }
    found: Result = {"backend": backend(options.device)}
    for cost, (scales, prepare) in costs.items():
        found[cost] = {}
        for name, scale in scales.items():
            progress(f"{cost}, {name}")
            sizes = [scale(base, factor) for factor in FACTORS]
            runs = {str(factor): prepare(size, options.device) for factor, size in zip(FACTORS, sizes, strict=True)}
            timings = race(runs, options.device, options.repeats, partial(say, progress, f"{cost}, {name} x"))
            found[cost][name] = curve([value_of(name, size) for size in sizes], [t.summary() for t in timings.values()])
    return found


def say(progress: Progress, before: str, text: str) -> None:
    """Pass a message on."""
    progress(before + text)


def backend(device: torch.device) -> str:
    """The fastest one of this device."""
    return lloyd.choose(torch.empty(1, 1, 1, device=device), 2)


def clustering_run(preset: Preset, device: torch.device) -> Run:
    """Clusters queues of this size."""
    values, clusters = features.queue(preset, device)
    return clustering.own(values, clusters)[clustering.OURS + backend(device)]


def step_run(preset: Preset, device: torch.device) -> Run:
    """Does a learn step of this size."""
    inputs = step.Inputs.random(preset, device)
    return step.our_step(step.learning_head(preset, inputs), inputs)


def value_of(name: str, preset: Preset) -> int:
    """What a curve is drawn against."""
    grid_points, drawn = (preset.grid_size + 1) ** 2, preset.unlabeled_samples_per_image
    return {
        "rows per queue": preset.queue_size,
        "classes": preset.num_classes,
        "channels": preset.feature_dim,
        "points": preset.images * (grid_points + drawn),
    }[name]


def curve(sizes: list[int], summaries: list[dict]) -> Result:  # type: ignore[type-arg]
    """Sizes and seconds, and the exponent of the power of the size that fits the seconds best."""
    failures = [s["failure"] for s in summaries if "failure" in s]
    if failures:
        return {"sizes": sizes, "failure": failures[0]}
    seconds = [s["seconds"] for s in summaries]
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, seconds))
    x, y = x - x.mean(), y - y.mean()
    return {
        "sizes": sizes,
        "seconds": seconds,
        "extra_bytes": [s["extra_bytes"] for s in summaries],
        "exponent": float((x * y).sum() / x.square().sum()),
    }


def tables(result: Result) -> list[Table]:
    """One table per cost."""
    found = []
    for cost in ("clustering", "learn step"):
        table = Table(f"Growth of the {cost}", ("", *(f"{f}x" for f in FACTORS), "exponent"))
        for name, line in result[cost].items():
            label = f"{name}, {line['sizes'][0]} to {line['sizes'][-1]}"
            if "failure" in line:
                table.rows.append([label, "failed", *[""] * len(FACTORS)])
                table.notes.append(f"{name} failed: {line['failure']}")
                continue
            table.rows.append([label, *map(show.seconds, line["seconds"]), f"{line['exponent']:.2f}"])
        table.notes.append("Time is about proportional to size to the power of the exponent; 1 is linear. "
                           "The sizes are this benchmark's own, whatever the preset.")  # fmt: skip
        found.append(table)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    command.with_quiet_threads()
    sys.exit(main())
