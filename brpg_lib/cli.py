"""The ``brpg`` command."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from brpg_lib.version import __version__

COMMANDS = {
    "demo": ("brpg_lib.examples.demo", "examples", "train with and without the head, and show what it did"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand, which parses its own arguments.

    Returns:
        Exit status: 0 for success, 2 for wrong usage or a missing extra.
    """
    parser = argparse.ArgumentParser(prog="brpg", description="Boundary-refined prototypes for segmentation trainers.")
    parser.add_argument("--version", action="version", version=f"brpg-lib {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, _, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    arguments, rest = parser.parse_known_args(argv)
    module_name, extra, _ = COMMANDS[arguments.command]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("brpg_lib"):
            raise
        print(f"brpg {arguments.command} needs {error.name}: pip install 'brpg-lib[{extra}]'", file=sys.stderr)
        return 2
    status: int = module.main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
