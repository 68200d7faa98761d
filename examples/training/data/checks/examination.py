"""What is in a directory of images and masks, what is wrong with it, and with which settings it can be trained on."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from brpg_lib.examples.training.data.camvid import CLASS_NAMES as CAMVID_CLASSES
from brpg_lib.examples.training.data.checks.classes import judge_classes
from brpg_lib.examples.training.data.checks.files import judge_files
from brpg_lib.examples.training.data.checks.findings import Findings, Given, Problem, numbered
from brpg_lib.examples.training.data.checks.inventory import files_of, layouts_of, renaming
from brpg_lib.examples.training.data.checks.lists import judge_lists
from brpg_lib.examples.training.data.checks.plan import plan
from brpg_lib.examples.training.data.checks.reading import read_all
from brpg_lib.examples.training.data.checks.values import judge_values
from brpg_lib.examples.training.data.encoding import Encoding
from brpg_lib.examples.training.data.folder import class_names_in
from brpg_lib.examples.training.data.layouts import LAYOUTS
from brpg_lib.examples.training.data.masks import READERS, Decode

PETS_CLASSES = ("pet", "background")
PETS_VALUES = ("1=0", "2=1", "3=ignore")


def examined(
    root: Path, given: Given, readers: int = READERS, progress: Callable[[int, int], object] = lambda done, of: None
) -> Findings:
    """Look into everything in a directory.

    Args:
        root: The directory.
        given: What the user says about it.
        readers: Threads that read files.
        progress: Told how many of how many images are done.

    Raises:
        ValueError: What the user says cannot be.
    """
    found = Findings(root)
    layouts = layouts_of(root)
    if given.layout is not None and given.layout not in layouts:
        raise ValueError(f"--data: expected the layout of {given.layout}, found {', '.join(layouts) or 'no known one'}")
    if not layouts:
        _no_layout(found)
        return found
    found.layout = given.layout or layouts[0]
    if found.layout != "folder" and (given.num_classes or given.encoding):
        raise ValueError(f"--num-classes, --mask-values, --palette: known for {found.layout}; --data folder is another")
    found.files = files_of(root, found.layout)
    decode, names = _known(found, given)
    found.encoding, found.class_names = decode, names
    read_all(found, decode, readers, progress)
    judge_files(found)
    if not found.files.images or not found.pairs:
        if not any(problem.kind in ("layout", "names") for problem in found.problems):
            found.problems.append(Problem("layout", "no image has a mask of its name and size that can be read"))
        return found
    judge_values(found, given)
    parts = judge_lists(found, given)
    judge_classes(found, parts)
    plan(found, given, parts)
    return found


def _no_layout(found: Findings) -> None:
    commands = renaming(found.root)
    known = ", ".join(layout.title for layout in LAYOUTS.values())
    found.problems.append(
        Problem(
            "layout",
            "expected images/NAME.jpg (or .png) and labels/NAME.png, or the layout of "
            f"{known}, CamVid or Oxford-IIIT Pet; found {', '.join(_shown(found.root)) or 'nothing'}",
        )
    )
    if commands:
        found.commands = [*commands, shlex.join(["brpg", "check-data", str(found.root)])]


def _shown(root: Path, most: int = 8) -> list[str]:
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    return names[:most] + [f"and {len(names) - most} more"] * (len(names) > most)


def _known(found: Findings, given: Given) -> tuple[Decode | None, tuple[str, ...]]:
    """What is known of the values, and of the classes' names, before any file is read."""
    if found.layout in LAYOUTS:
        return LAYOUTS[found.layout].decode, LAYOUTS[found.layout].class_names
    if found.layout == "camvid":
        return None, CAMVID_CLASSES
    if found.layout == "pets":
        return Encoding.of_values(PETS_VALUES), PETS_CLASSES
    encoding = given.encoding
    names = (encoding.names if encoding else ()) or tuple(class_names_in(found.root))
    count = given.num_classes or (encoding.num_classes if encoding else 0) or len(names)
    if names and len(names) != count:
        raise ValueError(f"{found.root / 'classes.txt'}: expected {count} names, found {len(names)}")
    return encoding, names or numbered(count)
