"""Whether a package that makes things faster can be used."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable


def works(package: str, load: Callable[[], object]) -> bool:
    """Whether a package is installed and what is built on it loads; warns where only the last fails."""
    if importlib.util.find_spec(package) is None:
        return False
    try:
        load()
    except Exception as error:  # a broken installation must not end a training
        warnings.warn(f"brpg_lib does without {package}, which is installed but fails: {error}", stacklevel=2)
        return False
    return True
