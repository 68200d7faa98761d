"""``brpg train``: a recipe, such as one of the published experiments, in one process or under torchrun."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Column, Table

from brpg_lib.examples.training.data.folder import REDUCED
from brpg_lib.examples.training.data.masks import UnreadableError, in_a_line
from brpg_lib.examples.training.loop import Run, plan_of
from brpg_lib.examples.training.options import add_mask_options, mask_changes, setting
from brpg_lib.examples.training.processes import Processes, joined, usable_device
from brpg_lib.examples.training.progress import progress_bar
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.examples.training.recipe_files import presets, read_recipe
from brpg_lib.examples.training.reports.masks import show_masks
from brpg_lib.examples.training.reports.training import draw
from brpg_lib.files import write_atomically

LAST, BEST, RESULT, PICTURE, LOGS = "last.pt", "best.pt", "result.json", "report.png", "tensorboard"
CPU_CROP = 129
"""Crops that a CPU trains on in less than an hour."""
METRICS_GROUP = "brpg"
"""The head's metrics in TensorBoard are ``brpg/NAME``, as in patched scripts."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="brpg train",
        description="Train a recipe: one of the presets (brpg train --list), or a YAML file. "
        "On several GPUs: torchrun --nproc-per-node 4 --no-python brpg train ...",
    )
    p.add_argument("recipe", nargs="?", help="name of a preset, such as voc/classic_92, or path of a YAML file")
    p.add_argument("--list", action="store_true", help="show the presets and exit")
    p.add_argument("--root", help="directory of the dataset (default: the recipe's)")
    p.add_argument("--splits", help="directory that the recipe's split is in (default: the recipe's)")
    p.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE",
                   help="change a field of the recipe, or head.FIELD; may be repeated (default: none)")  # fmt: skip
    add_mask_options(p)
    p.add_argument("--no-head", action="store_true", help="train the framework without the prototype head")
    p.add_argument("--device", help="torch device (default: the GPU of each process if there is one, else cpu)")
    processes = min(4, os.cpu_count() or 1)
    p.add_argument(
        "--workers", type=int, default=processes, help="processes that read images, for each GPU (default: %(default)s)"
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: runs/RECIPE)")
    p.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out, if there is one")
    p.add_argument("--try", dest="trial", action="store_true",
                   help="two steps of each phase and two test images, to see data, memory and speed")  # fmt: skip
    return p


def main(argv: list[str] | None = None) -> int:
    """Trains.

    Returns:
        Exit status: 0 for success, 2 for wrong usage or unusable data, 130 for an interruption.
    """
    arguments = parser().parse_args(argv)
    if arguments.list:
        _list()
        return 0
    if arguments.recipe is None:
        parser().error("expected a recipe; --list shows the presets")
    try:
        recipe = recipe_of(arguments)
        with _usage():
            device = usable_device(arguments.device)
        with joined(device) as processes:
            console = Console(quiet=processes.rank != 0)
            run = _made(recipe, arguments, processes)
            _try(run, console) if arguments.trial else _train(run, console)
    except (UsageError, UnreadableError) as error:
        where = f" (process {os.environ['RANK']})" if os.environ.get("RANK", "0") != "0" else ""
        print(f"brpg train{where}: {in_a_line(error)}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("brpg train: interrupted; --resume goes on from the last checkpoint", file=sys.stderr, flush=True)
        return 130
    return 0


class UsageError(Exception):
    """What the user can fix: the recipe, the data, the place. All else ends with a traceback."""


@contextlib.contextmanager
def _usage() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe with the changes of the command line.

    Raises:
        UsageError: Something in it is wrong.
    """
    changes = dict(arguments.set) | mask_changes(arguments)
    for name in ("root", "splits"):
        if getattr(arguments, name) is not None:
            changes[name] = getattr(arguments, name)
    with _usage():
        if arguments.workers < 0:
            raise ValueError(f"--workers: expected at least 0, found {arguments.workers}")
        return read_recipe(arguments.recipe, changes)


def _list() -> None:
    """No name is cut: a narrow terminal folds cells, and a file or a pipe gets lines as long as need be."""
    console = Console() if sys.stdout.isatty() else Console(width=200)
    heads = ("split", "network", "crop", "epochs")
    table = Table(Column("preset", no_wrap=True), *(Column(head, overflow="fold") for head in heads), box=None)
    for name in presets():
        r = read_recipe(name)
        table.add_row(name, r.split, r.network, "fits" if r.size is None else str(r.size), str(r.epochs))
    console.print(table)
    console.print("\nbrpg train PRESET --root DIR --try takes two steps of each phase; without --try it trains")


def _made(recipe: Recipe, arguments: argparse.Namespace, processes: Processes) -> Run:
    """The training, at its start or where its last checkpoint is."""
    with _usage():
        name = Path(arguments.recipe).with_suffix("").as_posix().replace("/", "-").strip("-.")
        folder: Path = arguments.out or Path("runs") / (name + ("-no-head" if arguments.no_head else ""))
        last = folder / LAST
        if last.is_file() and not arguments.resume and not arguments.trial:
            raise ValueError(f"{folder}: holds a training; --resume goes on with it, --out names another place")
        run = Run(
            recipe,
            not arguments.no_head,
            last,
            processes,
            arguments.workers,
            best=folder / BEST,
            trial=arguments.trial,
        )
        if arguments.resume and not arguments.trial and last.is_file():
            run.load(last)
        run.require_agreement()
        if not arguments.trial:
            folder.mkdir(parents=True, exist_ok=True)
        return run


def _introduce(run: Run, console: Console) -> None:
    recipe, ranks = run.recipe, run.processes.ranks
    head = "without the head" if run.trainer.head is None else "with the head"
    console.print(f"[bold]{recipe.framework}[/] {head}, {recipe.network}, {run.data.description}")
    show_masks(run.data, console)
    console.print(
        f"{run.plan.epochs} epochs of {run.plan.epoch} steps, crops of {recipe.crop} pixels, "
        f"{recipe.batch_size} labeled and as many unlabeled images per step, "
        f"{ranks} process{'es' if ranks > 1 else ''} on {run.processes.device.type}"
    )
    if recipe.data == "folder" and run.processes.device.type == "cpu" and recipe.crop > CPU_CROP:
        share = (CPU_CROP / recipe.crop) ** 2
        console.print(
            f"[yellow]Notice:[/] on a CPU, --set size={CPU_CROP} --set short_side={round(REDUCED * CPU_CROP)} "
            f"needs about {share:.0%} of the time"
        )


def _train(run: Run, console: Console) -> None:
    recipe, folder = run.recipe, run.last.parent
    _introduce(run, console)
    if run.processes.rank == 0:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    with _shown(run, console, folder) as progress:
        record = run.train(progress)
    if run.processes.rank != 0:
        return
    result = {
        "recipe": recipe.to_dict(),
        "head": run.trainer.head is not None,
        "processes": run.processes.ranks,
        "device": run.processes.device.type,
        **{key: value for key, value in vars(record).items() if key != "step"},
    }
    write_atomically(json.dumps(result, indent=2) + "\n", folder / RESULT)
    draw(run).savefig(folder / PICTURE, dpi=110)
    final = record.validations[-1]
    console.print(
        f"mIoU {final['miou']:.2f}, boundary IoU {final['boundary_miou']:.2f} (best mIoU {record.best:.2f}, "
        f"{folder / BEST}); picture: {folder / PICTURE}, numbers: {folder / RESULT}"
    )


def _try(run: Run, console: Console) -> None:
    """Two steps of each phase and a small validation; tells what the whole would take."""
    recipe, ranks, device = run.recipe, run.processes.ranks, run.processes.device
    _introduce(run, console)
    times = [time.perf_counter()]

    def progress(run: Run) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())

    record = run.train(progress)
    steps = [after - before for before, after in itertools.pairwise(times)]
    step = statistics.median(steps[1:-1])  # the first one is slow, the last one validates
    image = max(0.0, steps[-1] - step) * ranks / len(run.test)
    full = plan_of(recipe, len(run.data.unlabeled), trial=False)
    validations = math.ceil(full.epochs / recipe.validate_every)
    hours = (full.steps * step + validations * len(run.data.test) * image / ranks) / 3600
    console.print(
        f"{len(steps)} steps, two of each phase, and a validation work: {step:.2f} s per step, {image:.2f} s per test "
        f"image, about {hours:.1f} h for {full.steps} steps and {validations} validations; "
        f"peak memory {record.peak_memory:.0f} MB"
    )


@contextlib.contextmanager
def _shown(run: Run, console: Console, folder: Path) -> Iterator[Callable[[Run], None]]:
    """Progress, a line for each validation, and logs for TensorBoard where that is installed."""
    if run.processes.rank != 0:
        yield lambda _: None
        return
    writer = _writer(folder)
    told = len(run.record.validations)
    with progress_bar(console) as bar:
        task = bar.add_task("training", total=run.plan.steps, completed=run.record.step)

        def show(run: Run) -> None:
            nonlocal told
            record = run.record
            bar.update(task, completed=record.step, description=run.phase)
            for validation in record.validations[told:]:
                line = f"epoch {validation['epoch']:.0f}: mIoU {validation['miou']:.2f}, "
                console.print(f"{line}boundary IoU {validation['boundary_miou']:.2f}")
                if writer is not None:
                    for name in ("miou", "boundary_miou"):
                        writer.add_scalar(f"validation/{name}", validation[name], validation["step"])
            told = len(record.validations)
            if writer is not None:
                new = False
                for group, histories in (("loss", record.losses), (METRICS_GROUP, record.metrics)):
                    for name, values in histories.items():
                        if values[-1][0] == record.step:
                            writer.add_scalar(f"{group}/{name}", values[-1][1], record.step)
                            new = True
                if new:
                    writer.add_scalar("learning_rate", run.scheduler.get_last_lr()[0], record.step)

        try:
            yield show
        finally:
            if writer is not None:
                writer.close()


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return None
    return SummaryWriter(str(folder / LOGS))


if __name__ == "__main__":
    sys.exit(main())
