"""``brpg demo``: trains the same segmenter without and with the prototype head, and shows what the head did."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from brpg_lib.config import SMALL_DATA
from brpg_lib.examples.apart import result_of, run_apart
from brpg_lib.examples.data.catalog import DATASETS
from brpg_lib.examples.options import ITERATIONS, add_training_options, chosen
from brpg_lib.examples.progress import progress_bar
from brpg_lib.examples.report import NAMES, PAGES, write_report
from brpg_lib.examples.settings import FRAMEWORKS, Settings


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="brpg demo", description=__doc__)
    p.add_argument("--framework", choices=FRAMEWORKS, default="mean_teacher", help="trainer (default: %(default)s)")
    p.add_argument("--data", choices=DATASETS, default="digits", help="dataset (default: %(default)s)")
    p.add_argument("--root", help="directory of the dataset (all but digits)")
    p.add_argument(
        "--split",
        help="camvid: name of a partition in splits/ (default: 1_8_seed0); voc, voc_blended, cityscapes, coco: "
        "directory with labeled.txt and unlabeled.txt, and val.txt where the dataset has no list to test on",
    )
    p.add_argument("--num-classes", type=int, help="folder: number of classes; labels are 0..N-1, or 255 where ignored")
    p.add_argument("--seed", type=int, default=0, help="seed of all trainings (default: %(default)s)")
    p.add_argument("--device", help="torch device (default: cuda if there is one, else cpu)")
    p.add_argument("--iters", type=int, default=ITERATIONS, help="steps of each training (default: %(default)s)")
    add_training_options(p)
    p.add_argument("--resume", action="store_true", help="go on where an interrupted demo of that name stopped")
    p.add_argument("--name", help="name of the run (default: DATA-FRAMEWORK-SEED)")
    p.add_argument("--out", type=Path, default=Path("runs"), help="where runs are written (default: %(default)s)")
    return p


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Checked settings.

    Raises:
        ValueError: A number is out of range, or the device is not there.
    """
    settings = Settings(
        framework=arguments.framework,
        data=arguments.data,
        seed=arguments.seed,
        iterations=arguments.iters,
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        root=arguments.root,
        split=arguments.split,
        num_classes=arguments.num_classes,
        overrides=SMALL_DATA,
        **chosen(arguments),
    )
    for flag, value, least in (
        ("--iters", settings.iterations, 1),
        ("--size", settings.size, 17),
        ("--batch-size", settings.batch_size, 2),
        ("--seed", settings.seed, 0),
    ):
        if value < least:
            raise ValueError(f"{flag}: expected at least {least}, found {value}")
    try:
        torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {settings.device} cannot be used ({str(error).splitlines()[0]})") from error
    return settings


def main(argv: list[str] | None = None) -> int:
    """Runs the demo.

    Returns:
        Exit status: 0 for success, 2 for wrong usage or unusable data.
    """
    arguments = parser().parse_args(argv)
    console = Console()
    try:
        settings = settings_of(arguments)
        data = settings.load_data()
        folder = arguments.out / (arguments.name or f"{settings.data}-{settings.framework}-{settings.seed}")
        folder.mkdir(parents=True, exist_ok=True)
        console.print(f"[bold]{settings.framework}[/] on {data.description}")
        names = ", ".join(NAMES[run] for run in trainings_of(settings))
        console.print(f"{names}: {settings.iterations} steps each, seed {settings.seed}, on {settings.device}")
        if not arguments.resume:
            clear(folder)
        results = run_all(settings, folder, arguments.resume, console)
    except (ValueError, OSError) as error:
        print(f"brpg demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("brpg demo: interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    write_report(results, settings, data, folder, console)
    return 0


def run_all(settings: Settings, folder: Path, resume: bool, console: Console) -> dict[str, dict[str, Any]]:
    """Trains one after the other, each in a process of its own so that its peak memory is its own."""
    results = {}
    trainings = trainings_of(settings)
    with progress_bar(console) as bar:
        tasks = {run: bar.add_task(NAMES[run], total=settings.iterations, start=False) for run in trainings}
        for run, (own, with_head) in trainings.items():
            bar.start_task(tasks[run])
            for message in run_apart(own, with_head, folder / f"{run}.pt", resume):
                if isinstance(message, int):
                    bar.update(tasks[run], completed=message)
                else:
                    results[run] = message
            bar.update(tasks[run], completed=settings.iterations)
    return results


def trainings_of(settings: Settings) -> dict[str, tuple[Settings, bool]]:
    """Settings of each training, and whether the head takes part."""
    trainings = {"labels": (replace(settings, framework="supervised"), False)}
    if settings.framework != "supervised":
        trainings["unlabeled"] = (settings, False)
    return trainings | {"head": (settings, True)}


def clear(folder: Path) -> None:
    """Removes what an earlier demo of that name has left: its pages would say what this one did not find."""
    for run in NAMES:
        for path in (folder / f"{run}.pt", result_of(folder / f"{run}.pt")):
            path.unlink(missing_ok=True)
    for name in PAGES:
        (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
