"""``brpg completion``: a script that completes commands and options. A shell that has it need not start Python."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brpg_lib.cli import COMMANDS, function_of
from brpg_lib.version import __version__

WHERE = {
    "bash": "~/.local/share/bash-completion/completions/brpg",
    "zsh": "~/.zfunc/_brpg, with fpath+=~/.zfunc before compinit in ~/.zshrc",
    "tcsh": "/etc/profile.d/brpg.completion.csh",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the script.

    Returns:
        Exit status: 0 for success, 2 for a missing package.
    """
    places = "; ".join(f"{shell}: {place}" for shell, place in WHERE.items())
    parser = argparse.ArgumentParser(
        prog="brpg completion",
        description=f"Print a script that completes commands and options, for the place of your shell. {places}.",
    )
    parser.add_argument("shell", choices=tuple(WHERE))
    shell = parser.parse_args(argv).shell
    try:
        import shtab
    except ModuleNotFoundError as error:
        print(f"brpg completion needs {error.name} for this: pip install 'brpg-lib[completion]'", file=sys.stderr)
        return 2
    sys.stdout.write(shtab.complete(whole_parser(shtab.FILE), shell) + "\n")
    return 0


def whole_parser(files: object) -> argparse.ArgumentParser:
    """All commands with their options, as far as what they need is installed.

    Args:
        files: What tells that a path completes an argument.
    """
    parser = argparse.ArgumentParser(prog="brpg")
    parser.add_argument("--version", action="version", version=f"brpg-lib {__version__}")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        own = parser_of(name)
        parents = [] if own is None else [own]
        child = commands.add_parser(name, help=command.summary, parents=parents, add_help=False)
        for action in child._actions:
            if action.type is Path:
                action.complete = files  # type: ignore[attr-defined]
    return parser


class _FoundError(Exception):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parser_of(name: str) -> argparse.ArgumentParser | None:
    """The parser of a command: what it parses its arguments with. None where it needs a package that is not there."""
    try:
        with _caught():
            function_of(name)([])
    except _FoundError as found:
        return found.parser
    except ModuleNotFoundError:
        return None
    raise AssertionError(f"brpg {name} parses no arguments")


@contextmanager
def _caught() -> Iterator[None]:
    """The first parser that is asked to parse raises itself instead."""
    original = argparse.ArgumentParser.parse_args

    def raise_it(self: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        raise _FoundError(self)

    argparse.ArgumentParser.parse_args = raise_it  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]
