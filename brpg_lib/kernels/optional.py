"""Whether a package that makes things faster can be used."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from brpg_lib.notices import warn


def works(package: str, load: Callable[[], object], where: str = "") -> bool:
    """Whether a package is installed and what is built on it loads; warns, saying ``where``, if only the last fails."""
    if importlib.util.find_spec(package) is None:
        return False
    try:
        load()
    except Exception as error:  # a broken installation must not end a training
        warn(f"brpg_lib does without {package}, which is installed but fails{where}: {error}")
        return False
    return True
