"""Do the prototypes of several processes drift apart where each moves its own, as published, and does it matter?

Two processes train on digit scenes, once with the head as it is and once so that, from the first clustering on, each
process moves its prototypes by its own points alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from brpg_lib.benchmarks import command
from brpg_lib.benchmarks.compare.statistics import mean_with_interval
from brpg_lib.benchmarks.measure import environment
from brpg_lib.benchmarks.tables import Table
from brpg_lib.examples.training.loop import Run
from brpg_lib.examples.training.processes import free_port, joined
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.files import write_atomically

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PROCESSES = 2
VARIANTS = ("together", "each alone")
COLORS = dict(zip(VARIANTS, ("tab:blue", "tab:orange"), strict=True))
LOOK_EVERY = 10
RESULT, PAGE, PICTURE = "synchronization.json", "synchronization.md", "synchronization.png"


def recipe_of(seed: int, epochs: int) -> Recipe:
    """About 66 steps per epoch, of 6 + 6 images in each process."""
    return Recipe(
        data="digits",
        network="compact",
        pretrained=False,
        size=33,
        colors=True,
        batch_size=12,
        epochs=epochs,
        loss="cross_entropy",
        optimizer="adamw",
        learning_rate=0.006,
        new_factor=1,
        weight_decay=0.01,
        collect=0.5,
        ramp_start=0,
        validate_every=epochs,
        seed=seed,
        feature_dim=32,
        head={"queue_size": 3000, "grid_size": 16, "momentum": 0.95, "loss_weight": 0.3},
    )


def distance(prototypes: Tensor, mask: Tensor) -> float:
    """Mean of 1 - cosine between the prototypes of the first process and of the last."""
    everywhere = [torch.empty_like(prototypes) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, prototypes.contiguous())
    cosine = torch.cosine_similarity(everywhere[0], everywhere[-1], dim=-1)
    return float((1 - cosine)[mask].mean())


def member(rank: int, port: int, variant: str, seed: int, epochs: int, folder: Path) -> None:
    """One process's training; the first one writes what came of it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "LOCAL_RANK": str(rank),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as processes:
        run = Run(recipe_of(seed, epochs), True, folder / "last.pt", processes, workers=0)
        head = run.trainer.head
        assert head is not None
        own: Any = [dist.new_group([index]) for index in range(PROCESSES)][rank]
        distances: list[tuple[int, float]] = []

        def watch(run: Run) -> None:
            if not head.settled:
                return
            if variant == VARIANTS[1]:
                head.team.process_group = own
            if run.record.step % LOOK_EVERY == 0 or run.record.step == run.plan.steps:
                distances.append((run.record.step, distance(head.bank.prototypes, head.bank.mask)))

        record = run.train(watch)
        if rank == 0:
            found = {
                "variant": variant,
                "seed": seed,
                "steps": run.plan.steps,
                "distances": distances,
                "seconds": record.seconds,
                **{name: record.validations[-1][name] for name in ("miou", "boundary_miou")},
            }
            (folder / "found.json").write_text(json.dumps(found))


def perform(variant: str, seed: int, epochs: int) -> dict[str, Any]:
    """One training of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (free_port(), variant, seed, epochs, Path(folder))
        spawn(member, arguments, nprocs=PROCESSES)
        found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text())
    if not found["distances"]:
        raise ValueError(
            f"--epochs: expected more than {epochs}; not every class of seed {seed} had prototypes by then"
        )
    return found


def table(results: Sequence[dict[str, Any]]) -> Table:
    """Means over seeds, and paired differences."""
    made = Table(
        f"Prototypes of {PROCESSES} processes, moved together or by each alone",
        ("", "1 - cosine between them at the end", "mIoU", "boundary IoU", "mIoU, difference"),
    )
    together = {r["seed"]: r for r in results if r["variant"] == VARIANTS[0]}
    for variant in VARIANTS:
        chosen = [r for r in results if r["variant"] == variant]
        apart = statistics.mean(r["distances"][-1][1] for r in chosen)
        scores = [f"{statistics.mean(r[name] for r in chosen):.1f}" for name in ("miou", "boundary_miou")]
        differences = [r["miou"] - together[r["seed"]]["miou"] for r in chosen]
        made.rows.append(
            [variant, f"{apart:.1e}", *scores, mean_with_interval(differences) if variant != VARIANTS[0] else ""]
        )
    seeds = ", ".join(str(seed) for seed in together)
    made.notes.append(f"Seeds {seeds}; {results[0]['steps']} steps on digit scenes; 95% interval in brackets.")
    return made


def draw(results: Sequence[dict[str, Any]]) -> Any:
    """How far apart the prototypes are, over the training."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for result in results:
        steps, values = zip(*result["distances"], strict=True)
        label = result["variant"] if result["seed"] == results[0]["seed"] else None
        axis.plot(steps, [max(value, 1e-8) for value in values], color=COLORS[result["variant"]], label=label)
    axis.set(yscale="log", xlabel="training step", ylabel="1 - cosine (below 1e-8 drawn there)")
    axis.set_title(f"Between the prototypes of {PROCESSES} processes, moved together or each alone", fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="synchronization", description=__doc__)
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    p.add_argument("--epochs", type=int, default=6, help="length of each training (default: %(default)s)")
    out = Path("runs/synchronization")
    p.add_argument("--out", type=Path, default=out, metavar="DIR", help="(default: %(default)s)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and write page, picture and numbers.

    Returns:
        Exit status: 0 for success, 2 for wrong usage.
    """
    arguments = parser().parse_args(argv)
    console = Console()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = []
    try:
        for seed in arguments.seeds:
            for variant in VARIANTS:
                results.append(perform(variant, seed, arguments.epochs))
                console.print(f"seed {seed}, {variant}: mIoU {results[-1]['miou']:.1f}")
    except ValueError as error:
        print(f"synchronization: {error}", file=sys.stderr)
        return 2
    made = table(results)
    where = {"environment": environment(torch.device("cpu")) | {"threads": 1}, "results": results}
    write_atomically(json.dumps(where, indent=2) + "\n", arguments.out / RESULT)
    draw(results).savefig(arguments.out / PICTURE, dpi=110)
    plt.close("all")
    text = f"# Synchronized prototypes\n\n![Distances]({PICTURE})\n\n{made.markdown().strip()}\n"
    write_atomically(text, arguments.out / PAGE)
    console.print(made.rich())
    console.print(f"page: {arguments.out / PAGE}")
    return 0


if __name__ == "__main__":
    command.with_quiet_threads()
    sys.exit(main())
