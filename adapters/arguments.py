"""The ``brpg:`` section of a script that reads no yaml: ``--brpg FILE`` on its command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

OPTION = "--brpg"


def take_section(arguments: list[str] | None = None) -> Any:
    """Takes ``--brpg FILE`` out of the command line, so that no other parser stumbles over it.

    >>> take_section(["train.py", "--exp", "mine"]) is None
    True

    Args:
        arguments: The command line, shortened in place; ``None`` for ``sys.argv``.

    Returns:
        What the file holds under ``brpg``; ``None`` without the option.

    Raises:
        SystemExit: With a message: there is no file, it is no YAML, or it has no such section.
    """
    arguments = sys.argv if arguments is None else arguments
    for index, argument in enumerate(arguments):
        if argument.partition("=")[0] == OPTION:
            taken = 1 if "=" in argument else 2
            name = "=".join(arguments[index : index + taken]).partition("=")[2]
            del arguments[index : index + taken]
            return _read(name)
    return None


def _read(name: str) -> Any:
    if not name:
        sys.exit(f"{OPTION}: expected a YAML file with a section brpg, found nothing")
    import yaml

    try:
        found = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        sys.exit(f"{OPTION}: {name}: {str(error).splitlines()[0]}")
    if not isinstance(found, dict) or "brpg" not in found:
        keys = ", ".join(map(str, found)) if isinstance(found, dict) else repr(found)
        sys.exit(f"{OPTION}: {name}: expected a section brpg, found {keys}")
    return found["brpg"]
