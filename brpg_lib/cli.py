"""The ``brpg`` command."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from brpg_lib.version import __version__


class Command(NamedTuple):
    """A subcommand, which parses its own arguments.

    Attributes:
        place: Function that runs it, as ``module:name``.
        extra: Of the distribution, that has what it needs.
        summary: What it does.
        examples: Lines to type, each with what it does.
    """

    place: str
    extra: str
    summary: str
    examples: tuple[tuple[str, str], ...]


COMMANDS = {
    "demo": Command(
        "brpg_lib.examples.demo:main",
        "examples",
        "train with and without the head, and show what it did",
        (
            ("brpg demo", "digit scenes, four minutes; writes runs/*/report.png"),
            ("brpg demo --framework unimatch --seed 1", "another trainer, another seed"),
            ("brpg demo --data folder --root DIR --num-classes 3", "images/ and labels/ of your own"),
        ),
    ),
    "check-data": Command(
        "brpg_lib.examples.check_data:main",
        "examples",
        "look into images and masks of your own",
        (
            ("brpg check-data DIR", "what is in it, what is wrong, and what to type to train on it"),
            ("brpg check-data DIR --picture samples.png", "and a few images with their masks over them"),
        ),
    ),
    "train": Command(
        "brpg_lib.examples.train:main",
        "examples",
        "train a recipe, such as a published experiment",
        (
            ("brpg train --list", "the presets"),
            ("brpg train folder/small --root DIR --num-classes 3 --try", "two steps of each phase: time and memory"),
            ("brpg train folder/small --root DIR --num-classes 3", "to the end, into runs/folder-small"),
            ("brpg train folder/small --root DIR --num-classes 3 --resume", "go on with it"),
        ),
    ),
    "predict": Command(
        "brpg_lib.examples.predict:main",
        "examples",
        "segment images with a trained network, and rank them",
        (("brpg predict runs/folder-small/best.pt IMAGES --out predictions", "masks, overlays, maps of doubt"),),
    ),
    "inspect": Command(
        "brpg_lib.inspection.command:main",
        "inspect",
        "show the prototypes in a checkpoint",
        (
            ("brpg inspect runs/folder-small/last.pt", "tables in the terminal"),
            ("brpg inspect runs/folder-small/last.pt --out page.html", "and a page with a picture"),
        ),
    ),
    "compare": Command(
        "brpg_lib.benchmarks.compare.command:main",
        "bench",
        "tell whether the head helped, from your results",
        (
            ("brpg train voc/classic_92 --no-head --set seed=0 --out runs/without/0", "and seeds 1, 2, ..."),
            ("brpg train voc/classic_92 --set seed=0 --out runs/with/0", "the same with the head"),
            ("brpg compare runs/without runs/with", "pairs them, and tells"),
            ("brpg compare results.csv", "of any trainer: a line per training, seed,variant,score"),
        ),
    ),
    "patch": Command(
        "brpg_lib.adapters.commands:patch_command",
        "adapters",
        "add the head to a training script",
        (
            ("brpg patch my_train.py --check", "what is found in it, and what would be inserted"),
            ("brpg patch my_train.py", "write my_train_brpg.py, and print how to start it"),
            ("brpg patch unimatch PATH/TO/UniMatch", "all scripts of a clone"),
            ("brpg patch my_train.py --guide", "a script of no known framework: the lines to add"),
        ),
    ),
    "run": Command(
        "brpg_lib.adapters.commands:run_command",
        "adapters",
        "patch a training script in memory and run it",
        (("brpg run my_train.py --nproc-per-node 2 -- --config ...", "its own arguments after --"),),
    ),
    "list": Command(
        "brpg_lib.adapters.commands:list_command",
        "adapters",
        "show what can be patched",
        (("brpg list", "frameworks, scripts, known commits, bugs to fix"),),
    ),
    "bench": Command(
        "brpg_lib.benchmarks.bench:bench_command",
        "bench",
        "measure speed and memory, and write a page of it",
        (("brpg bench --quick", "two minutes; writes runs/bench/benchmark.md"),),
    ),
    "completion": Command(
        "brpg_lib.completion:main",
        "completion",
        "print a script that completes commands and options in your shell",
        (("brpg completion bash > ~/.local/share/bash-completion/completions/brpg", "from the next shell on"),),
    ),
}
START = "https://github.com/brpg-lib/brpg-lib/blob/main/docs/start.md"
TOUR = (
    ("See it work", (("demo", 0),)),
    ("Train on a folder of your own", (("check-data", 0), ("train", 2), ("predict", 0), ("inspect", 1))),
    ("Put it into a trainer you have", (("patch", 1), ("patch", 3))),
    ("Know whether it helps you", (("compare", 2), ("compare", 3))),
)
"""What one may want, and which examples of which commands do it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; without arguments, show a tour of them.

    Returns:
        Exit status: 0 for success, 2 for wrong usage or a missing extra, 130 for an interruption.
    """
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # who reads has enough, as `head` does; nothing is to be written at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: list[str]) -> int:
    if not arguments:
        print(tour())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        if name.startswith("-"):
            _parser().parse_args(arguments)  # help, version, or what is wrong
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean brpg {near[0]}?" if near else ""
        print(
            f"brpg: no such command: {name!r}{hint} (brpg --help lists them, brpg alone shows a tour)", file=sys.stderr
        )
        return 2
    try:
        run = function_of(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("brpg_lib"):
            raise
        extra = COMMANDS[name].extra
        print(f"brpg {name} needs {error.name}: pip install 'brpg-lib[{extra}]'", file=sys.stderr)
        return 2
    try:
        return run(rest)
    except SystemExit as end:  # argparse has answered
        if not end.code and _asks_for_help(rest):
            print(f"\n{examples(name)}")
        elif end.code == 2:
            print(f"brpg {name} --help has all options, and examples", file=sys.stderr)
        raise
    except KeyboardInterrupt:  # of a command that keeps nothing to go on from
        print(f"\nbrpg {name}: interrupted", file=sys.stderr)
        return 130


def function_of(name: str) -> Callable[[Sequence[str]], int]:
    """What runs a command.

    Raises:
        ModuleNotFoundError: It needs a package that is not installed.
    """
    module, _, function = COMMANDS[name].place.partition(":")
    found: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), function)
    return found


def tour() -> str:
    """What to type, by what one wants.

    >>> print(tour().splitlines()[0])
    brpg-lib: boundary-refined prototypes for segmentation trainers you have.
    """
    lines = ["brpg-lib: boundary-refined prototypes for segmentation trainers you have."]
    for title, chosen in TOUR:
        lines += ["", title, *_table([COMMANDS[name].examples[index] for name, index in chosen])]
    lines += ["", "All commands: brpg --help      One command: brpg train --help", f"In Python: {START}"]
    return "\n".join(lines)


def examples(name: str) -> str:
    """Examples of a command, as its help ends."""
    return "\n".join(["examples:", *_table(COMMANDS[name].examples)])


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Commands, each with what it does: beside it where there is room in 80 columns for all, else below."""
    width = max(len(command) for command, _ in rows)
    if all(width + len(what) + 4 <= 80 for _, what in rows):
        return [f"  {command:<{width}}  {what}" for command, what in rows]
    return [line for command, what in rows for line in (f"  {command}", f"      {what}")]


def _asks_for_help(arguments: Sequence[str]) -> bool:
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "-h" in own or "--help" in own


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brpg",
        description="Boundary-refined prototypes for segmentation trainers. brpg alone shows a tour.",
        epilog="brpg COMMAND --help shows its options, their defaults, and examples.",
    )
    parser.add_argument("--version", action="version", version=f"brpg-lib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary, add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
