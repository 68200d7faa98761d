"""``brpg demo``: trains the same segmenter without and with the prototype head, and shows what the head did."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from brpg_lib.examples.training.apart import result_of, run_apart
from brpg_lib.examples.training.data.masks import in_a_line
from brpg_lib.examples.training.frameworks import TRAINERS
from brpg_lib.examples.training.options import add_training_options, chosen
from brpg_lib.examples.training.processes import usable_device
from brpg_lib.examples.training.progress import progress_bar
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.examples.training.reports.demo import NAMES, PAGES, write_report
from brpg_lib.examples.training.reports.masks import show_masks


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="brpg demo", description=__doc__)
    p.add_argument("--framework", choices=TRAINERS, default="mean_teacher", help="trainer (default: %(default)s)")
    p.add_argument(
        "--split",
        help="camvid: name of a partition in splits/ (default: few_6_seed0); voc, voc_blended, cityscapes, coco: "
        "directory with labeled.txt and unlabeled.txt, and val.txt where the dataset has no list to test on",
    )
    p.add_argument("--seed", type=int, default=0, help="seed of all trainings (default: %(default)s)")
    add_training_options(p)
    p.add_argument("--resume", action="store_true", help="go on where an interrupted demo of that name stopped")
    p.add_argument("--name", help="name of the run (default: DATA-FRAMEWORK-SEED)")
    p.add_argument("--out", type=Path, default=Path("runs"), help="where runs are written (default: %(default)s)")
    return p


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """What to train, with the head's setting for few labels.

    Raises:
        ValueError: A value is wrong; the message names it.
    """
    changes: dict[str, Any] = {"framework": arguments.framework, "seed": arguments.seed}
    if arguments.split is not None:
        changes["split"] = arguments.split
    return chosen(arguments, changes | {"head.preset": "small_data"})


def main(argv: list[str] | None = None) -> int:
    """Runs the demo.

    Returns:
        Exit status: 0 for success, 2 for wrong usage or unusable data.
    """
    arguments = parser().parse_args(argv)
    console = Console()
    try:
        recipe = recipe_of(arguments).settled()
        device = str(usable_device(arguments.device))
        data = recipe.load_data()
        folder = arguments.out / (arguments.name or f"{recipe.data}-{recipe.framework}-{recipe.seed}")
        folder.mkdir(parents=True, exist_ok=True)
        console.print(f"[bold]{recipe.framework}[/] on {data.description}")
        show_masks(data, console)
        names = ", ".join(NAMES[run] for run in trainings_of(recipe))
        console.print(f"{names}: {recipe.epoch_steps} steps each, seed {recipe.seed}, on {device}")
        if not arguments.resume:
            clear(folder)
        results = run_all(recipe, folder, device, arguments.resume, console)
    except (ValueError, OSError) as error:
        print(f"brpg demo: {in_a_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("brpg demo: interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    write_report(results, recipe, data, folder, console)
    return 0


def run_all(recipe: Recipe, folder: Path, device: str, resume: bool, console: Console) -> dict[str, dict[str, Any]]:
    """Trains one after the other, each in a process of its own so that its peak memory is its own."""
    results = {}
    trainings = trainings_of(recipe)
    with progress_bar(console) as bar:
        tasks = {run: bar.add_task(NAMES[run], total=recipe.epoch_steps, start=False) for run in trainings}
        for run, (own, with_head) in trainings.items():
            bar.start_task(tasks[run])
            for message in run_apart(own, with_head, folder / f"{run}.pt", resume, device):
                if isinstance(message, int):
                    bar.update(tasks[run], completed=message)
                else:
                    results[run] = message
            bar.update(tasks[run], completed=recipe.epoch_steps)
    return results


def trainings_of(recipe: Recipe) -> dict[str, tuple[Recipe, bool]]:
    """Recipe of each training, and whether the head takes part."""
    trainings = {"labels": (replace(recipe, framework="supervised"), False)}
    if recipe.framework != "supervised":
        trainings["unlabeled"] = (recipe, False)
    return trainings | {"head": (recipe, True)}


def clear(folder: Path) -> None:
    """Removes what an earlier demo of that name has left: its pages would say what this one did not find."""
    for run in NAMES:
        for path in (folder / f"{run}.pt", result_of(folder / f"{run}.pt")):
            path.unlink(missing_ok=True)
    for name in PAGES:
        (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
