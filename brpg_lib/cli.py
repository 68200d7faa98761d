"""The ``brpg`` command."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from brpg_lib.version import __version__

COMMANDS = {
    "demo": ("brpg_lib.examples.demo:main", "examples", "train with and without the head, and show what it did"),
    "train": ("brpg_lib.examples.train:main", "examples", "train a recipe, such as a published experiment"),
    "check-data": ("brpg_lib.examples.check_data:main", "examples", "look into images and masks of your own"),
    "predict": ("brpg_lib.examples.predict:main", "examples", "segment images with a trained network, and rank them"),
    "inspect": ("brpg_lib.inspection.command:main", "inspect", "show the prototypes in a checkpoint"),
    "bench": ("brpg_lib.benchmarks.bench:bench_command", "bench", "measure speed and memory, and write a page of it"),
    "compare": ("brpg_lib.benchmarks.compare.command:main", "bench", "tell whether the head helped, from your results"),
    "patch": ("brpg_lib.adapters.commands:patch_command", "adapters", "add the head to a U2PL or UniMatch checkout"),
    "run": ("brpg_lib.adapters.commands:run_command", "adapters", "patch a training script in memory and run it"),
    "list": ("brpg_lib.adapters.commands:list_command", "adapters", "show what can be patched"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand, which parses its own arguments.

    Returns:
        Exit status: 0 for success, 2 for wrong usage or a missing extra.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in COMMANDS:
        _parser().parse_args(arguments)  # help, version, or what is wrong
    command, *rest = arguments
    place, extra, _ = COMMANDS[command]
    module, _, function = place.partition(":")
    try:
        run = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("brpg_lib"):
            raise
        print(f"brpg {command} needs {error.name}: pip install 'brpg-lib[{extra}]'", file=sys.stderr)
        return 2
    status: int = run(rest)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="brpg", description="Boundary-refined prototypes for segmentation trainers.")
    parser.add_argument("--version", action="version", version=f"brpg-lib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, _, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
