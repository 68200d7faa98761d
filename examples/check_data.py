"""``brpg check-data``: looks into a directory of images and masks, and says what is wrong and what to type."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from brpg_lib.examples.training.data.catalog import DATASETS
from brpg_lib.examples.training.data.checks.examination import examined
from brpg_lib.examples.training.data.checks.findings import Findings, Given, few
from brpg_lib.examples.training.data.encoding import palette, palette_file
from brpg_lib.examples.training.loop import plan_of
from brpg_lib.examples.training.options import add_mask_options
from brpg_lib.examples.training.progress import progress_bar
from brpg_lib.examples.training.recipe_files import read_recipe
from brpg_lib.examples.training.reports.masks import class_table, color_table, value_table

FINE, PROBLEMS, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
SHOWN = 10
"""Files that are named for each problem; ``--json`` names all."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="brpg check-data",
        description="Look into a directory of images and masks: what is in it, what is wrong with it, and what to type "
        "to train on it. Reads every file; changes nothing. Exit status: 0 fine, 1 problems, 2 wrong usage.",
    )
    p.add_argument("root", type=Path, help="directory with images/ and labels/, or of a published dataset")
    p.add_argument("--data", choices=[name for name in DATASETS if name != "digits"],
                   help="layout, where there are several (default: the most special one)")  # fmt: skip
    p.add_argument(
        "--split",
        metavar="DIR",
        help="published datasets: directory with labeled.txt and unlabeled.txt (default: none)",
    )
    add_mask_options(p)
    p.add_argument("--seed", type=int, default=0, help="of the images that a training draws (default: %(default)s)")
    p.add_argument("--workers", type=int, default=min(8, 2 * (os.cpu_count() or 1)), metavar="N",
                   help="threads that read files (default: %(default)s)")  # fmt: skip
    p.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw a few images with their masks over them, .png (default: no)"
    )
    p.add_argument("--json", action="store_true", help="print everything as JSON, for scripts")
    return p


def main(argv: list[str] | None = None) -> int:
    """Checks.

    Returns:
        Exit status: 0 if all is fine, 1 for problems, 2 for wrong usage, 130 for an interruption.
    """
    arguments = parser().parse_args(argv)
    try:
        found = _examined(arguments)
        if arguments.picture is not None and found.pairs:
            _draw(found, arguments.picture)
    except (ValueError, OSError) as error:
        print(f"brpg check-data: {error}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        print("brpg check-data: interrupted", file=sys.stderr)
        return INTERRUPTED
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        show(found, Console(), arguments.picture)
    return PROBLEMS if found.problems else FINE


def _examined(arguments: argparse.Namespace) -> Findings:
    root: Path = arguments.root.expanduser()
    if not root.is_dir():
        raise ValueError(f"{root}: no such directory")
    if arguments.workers < 1:
        raise ValueError(f"--workers: expected at least 1, found {arguments.workers}")
    if arguments.num_classes is not None and arguments.num_classes < 2:
        raise ValueError(f"--num-classes: expected at least 2, found {arguments.num_classes}")
    if arguments.picture is not None and not arguments.picture.resolve().parent.is_dir():
        raise ValueError(f"--picture: no such directory: {arguments.picture.parent}")
    colors = arguments.palette
    if colors is not None:
        colors = palette(colors) if "=" in colors else palette_file(Path(colors).expanduser())
    given = Given(
        layout=arguments.data,
        split=arguments.split,
        num_classes=arguments.num_classes,
        mask_values=arguments.mask_values,
        palette=colors,
        palette_text=arguments.palette,
        seed=arguments.seed,
    )
    bar = progress_bar(Console(stderr=True, quiet=arguments.json))
    task = bar.add_task("reading", total=None)

    def show_progress(done: int, of: int) -> None:
        bar.start()  # with the first file: wrong usage is told before
        bar.update(task, completed=done, total=of)

    try:
        found = examined(root, given, arguments.workers, show_progress)
    finally:
        bar.stop()
    if "unlabeled" in found.training:
        found.training |= _lengths(found.training)
    return found


def _lengths(training: dict[str, Any]) -> dict[str, Any]:
    """How long the preset would train."""
    recipe = read_recipe(training["preset"])
    recipe = replace(recipe, size=training.get("crop", recipe.size))
    plan = plan_of(recipe, training["unlabeled"], trial=False)
    return {
        "crop": recipe.crop,
        "network": recipe.network,
        "batch_size": recipe.batch_size,
        "epochs": plan.epochs,
        "steps": plan.steps,
        "warmup": plan.schedule.warmup,
        "collect": plan.schedule.collect,
    }


def _draw(found: Findings, path: Path) -> None:
    from matplotlib import pyplot as plt

    from brpg_lib.examples.training.reports.samples import draw_samples

    draw_samples(found).savefig(path, dpi=100)
    plt.close("all")


def show(found: Findings, console: Console, picture: Path | None = None) -> None:
    """Prints what was found, for a reader."""

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False)

    files = found.files
    say(f"[bold]{escape(str(found.root))}[/]: layout {found.layout or 'unknown'}, {len(files.images)} images, "
        f"{len(files.masks)} masks, {len(found.pairs)} pairs")  # fmt: skip
    sizes = list(found.to_dict()["sizes"].items())
    if sizes:
        say(f"Sizes: {few([f'{size} ({number})' for size, number in sizes], 5)}")
    if found.lists:
        say(f"Lists: {few([f'{name}.txt ({number})' for name, number in found.lists.items()], 12)}")
    if found.values.pixels and not found.values.colored:
        console.print(value_table(found))
    if found.values.colored:
        console.print(color_table(found.values))
    if "labeled" in found.tallies:
        console.print(class_table(found.tallies, found.class_names))
    for notice in found.notices:
        say(f"[yellow]Notice:[/] {escape(notice)}")
    for problem in found.problems:
        say(f"[red]Problem:[/] {escape(problem.text)}")
        for line in problem.files[:SHOWN]:
            say(f"  {escape(line)}")
        if len(problem.files) > SHOWN:
            say(f"  and {len(problem.files) - SHOWN} more (--json names all)")
    _show_training(found, say)
    if picture is not None:
        say(f"Picture: {escape(str(picture))}" if found.pairs else "No picture: no image has a mask to draw")
    if found.problems:
        say(f"[red]Problems: {len(found.problems)}[/]")
    else:
        say("[green]No problems[/]" + (f"; see the notices above: {len(found.notices)}." if found.notices else "."))


def _show_training(found: Findings, say: Any) -> None:
    training = found.training
    if "steps" in training:
        reduced = f" of images reduced to {training['short_side']}" if training.get("short_side") else ""
        say(
            f"A training with {training['preset']}: {training['labeled']} labeled, {training['unlabeled']} unlabeled, "
            f"{training['test']} test images; {training['network']}, crops of {training['crop']} pixels{reduced}, "
            f"{training['steps']} steps in {training['epochs']} epochs (prototypes from step "
            f"{training['warmup'] + training['collect']})"
        )
    if found.suggestion is not None and found.suggestion.palette is not None:
        say("Give the classes their names in the palette; it may also be a file with one NAME=#rrggbb per line.")
    if found.commands:
        say("[bold]Type:[/]")
        for command in found.commands:
            say(f"  {escape(command)}")
