"""All files of a directory, read in threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from brpg_lib.examples.training.data.checks.findings import Findings, Seen
from brpg_lib.examples.training.data.masks import Decode, UnreadableError, in_threads, opened, read_mask

MOST_COLORS = 4096
"""Colors of one mask that are remembered; a photograph has many more."""
ORIENTATION = 274
"""Number of the EXIF field that tells how a camera was held."""


def read_all(found: Findings, decode: Decode | None, readers: int, progress: Callable[[int, int], object]) -> None:
    """Reads all files, in threads."""
    names = list(dict.fromkeys([*found.files.images, *found.files.masks]))
    count = len(found.class_names) or None

    def look(name: str) -> Seen:
        return look_at(name, found.files.images.get(name), found.files.masks.get(name), decode, count)

    for done, seen in enumerate(in_threads(look, names, readers), 1):
        found.seen[seen.name] = seen
        if seen.mask is not None:
            found.values.add(found.files.masks[seen.name], seen.mask)
        progress(done, len(names))


def look_at(
    name: str, image_path: Path | None, mask_path: Path | None, decode: Decode | None, count: int | None
) -> Seen:
    """Reads an image and its label image completely."""
    size, mode, turned, mask, faults = None, "", False, None, []
    if image_path is not None:
        try:
            image = opened(image_path)
            size, mode = image.size, image.mode
            turned = image.getexif().get(ORIENTATION, 1) != 1
        except UnreadableError as error:
            faults.append(str(error))
    if mask_path is not None:
        try:
            mask = read_mask(mask_path, decode, count)
            if len(mask.pixels) > MOST_COLORS:
                mask = mask._replace(pixels=dict(Counter(mask.pixels).most_common(MOST_COLORS)))
        except UnreadableError as error:
            faults.append(str(error))
    return Seen(name, size, mode, turned, mask, tuple(faults))
