"""In a source checkout, three subpackages lie beside this package; an installation has them inside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

SUBPACKAGES = ("adapters", "benchmarks", "examples")


class BesideFinder(MetaPathFinder):
    """Finds ``brpg_lib.adapters`` and the other two, and nothing else, in a checkout.

    Args:
        checkout: Its root.
    """

    def __init__(self, checkout: Path) -> None:
        self.folders = {f"brpg_lib.{name}": checkout / name for name in SUBPACKAGES}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        folder = self.folders.get(fullname)
        if folder is None:
            return None
        return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])


def find_subpackages() -> None:
    """Make the subpackages of a checkout importable, if this is one."""
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file():
        sys.meta_path.append(BesideFinder(checkout))
