"""What is in label images: values, how many pixels of each, and in how many images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.encoding import UNKNOWN, Encoding, color_text, packed

Decode = Callable[[np.ndarray, Path], np.ndarray]
"""Class indices from the values of a label image and its path, both ``(H, W)`` int64; an
:class:`~brpg_lib.examples.training.data.encoding.Encoding`, or what the layout of a dataset knows."""
READERS = 8
"""Threads that read files at once: decoding an image leaves the interpreter to the others."""
FEW_NAMES = 5

Item = TypeVar("Item")
Found = TypeVar("Found")


class UnreadableError(ValueError):
    """An image file that cannot be read."""


def opened(path: Path) -> Image.Image:
    """An image, read completely.

    Raises:
        UnreadableError: It cannot be read.
    """
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, by format
        raise UnreadableError(f"{path}: not a readable image ({reason(error)})") from error
    return image


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image, from the first bytes of its file.

    Raises:
        UnreadableError: It is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            return width, height
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(f"{path}: not a readable image ({reason(error)})") from error


def reason(error: Exception) -> str:
    """Why Pillow could not read a file."""
    return "no image of a known format" if isinstance(error, UnidentifiedImageError) else str(error)


def in_a_line(error: Exception) -> str:
    """What an error says, without the traceback that a process which reads images puts before it."""
    last = str(error).strip().splitlines()[-1]
    return last.removeprefix(f"{UnreadableError.__module__}.{UnreadableError.__qualname__}: ")


class MaskFile(NamedTuple):
    """What one label image holds.

    Attributes:
        size: Width and height.
        mode: Pillow's name for the kind of its pixels.
        colored: Whether it holds colors where one value per pixel was expected.
        pixels: How many have each value; of colors, ``0xRRGGBB``.
        classes: How many are of each class; :data:`UNKNOWN` are of none.
    """

    size: tuple[int, int]
    mode: str
    colored: bool
    pixels: dict[int, int]
    classes: dict[int, int]


def values_of(image: Image.Image, decode: Decode | None = None) -> np.ndarray | None:
    """Values ``(H, W)`` int64 of a label image; None where it holds colors and nobody expects these.

    An image in colors that are all gray is taken for its gray values once somebody has said what they mean.
    """
    if isinstance(decode, Encoding) and decode.colors:
        return packed(np.array(image.convert("RGB")))
    values = np.array(image)
    if values.ndim == 3 and isinstance(decode, Encoding):
        colors = np.array(image.convert("RGB"))
        if (colors == colors[..., :1]).all():
            values = colors[..., 0]
    return values.astype(np.int64) if values.ndim == 2 else None


def read_mask(path: Path, decode: Decode | None = None, num_classes: int | None = None) -> MaskFile:
    """Counts the pixels of a label image.

    Args:
        path: Of the file.
        decode: What its values mean; None where they are class indices.
        num_classes: C; None where it is yet to be found out.

    Raises:
        UnreadableError: It cannot be read.
    """
    image = opened(path)
    values = values_of(image, decode)
    if values is None:
        return MaskFile(image.size, image.mode, True, counts(packed(np.array(image.convert("RGB")))), {})
    pixels = counts(values)
    known = np.array([list(pixels)], dtype=np.int64)
    decoded = known if decode is None else decode(known, path)
    classes: Counter[int] = Counter()
    for index, number in zip(decoded[0].tolist(), pixels.values(), strict=True):
        fits = index == IGNORE_INDEX or (index >= 0 and (num_classes is None or index < num_classes))
        classes[index if fits else UNKNOWN] += number
    return MaskFile(image.size, image.mode, False, pixels, dict(classes))


def counts(values: np.ndarray) -> dict[int, int]:
    """How many pixels have each value, by value. Neighbors are mostly equal, so runs of them are counted."""
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if flat.size else np.zeros(0, np.int64)
    lengths = np.diff(np.append(starts, flat.size))
    found, place = np.unique(flat[starts], return_inverse=True)
    number = np.bincount(place.ravel(), weights=lengths, minlength=len(found)).astype(np.int64)
    return dict(zip(found.tolist(), number.tolist(), strict=True))


@dataclass
class Tally:
    """What some label images hold together.

    Attributes:
        masks: How many were looked into.
        pixels: How many have each value.
        images: How many images have it.
        class_pixels: How many are of each class; :data:`UNKNOWN` are of none, :data:`IGNORE_INDEX` are ignored.
        class_images: How many images show it.
        examples: An image with each value.
        colored: Files in colors, where one value per pixel was expected, with Pillow's name for their kind.
        colors: Pixels of each color in them.
        color_images: How many of them have it.
    """

    masks: int = 0
    pixels: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    class_pixels: Counter[int] = field(default_factory=Counter)
    class_images: Counter[int] = field(default_factory=Counter)
    examples: dict[int, Path] = field(default_factory=dict)
    colored: list[tuple[Path, str]] = field(default_factory=list)
    colors: Counter[int] = field(default_factory=Counter)
    color_images: Counter[int] = field(default_factory=Counter)

    def add(self, path: Path, found: MaskFile) -> None:
        """Count one more."""
        self.masks += 1
        if found.colored:
            self.colored.append((path, found.mode))
            self.colors.update(found.pixels)
            self.color_images.update(found.pixels.keys())
            return
        self.pixels.update(found.pixels)
        self.images.update(found.pixels.keys())
        self.class_pixels.update(found.classes)
        self.class_images.update(found.classes.keys())
        for value in found.pixels:
            self.examples.setdefault(value, path)

    def shown(self, num_classes: int) -> list[int]:
        """The classes that occur."""
        return [index for index in range(num_classes) if self.class_pixels[index]]


def tally(paths: Sequence[Path], decode: Decode | None, num_classes: int) -> Tally:
    """Counts the pixels of many label images.

    Raises:
        UnreadableError: One of them cannot be read.
    """
    found = Tally()
    for path, mask in zip(paths, in_threads(lambda p: read_mask(p, decode, num_classes), paths), strict=True):
        found.add(path, mask)
    return found


def in_threads(call: Callable[[Item], Found], items: Iterable[Item], readers: int = READERS) -> Iterator[Found]:
    """What the call gives for each of the items, in their order; some are always under way."""
    with ThreadPoolExecutor(readers) as pool:
        try:
            yield from pool.map(call, items)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def value_names(values: Sequence[int], decode: Decode | None = None) -> str:
    """A few values in words."""
    shown = decode.shown if isinstance(decode, Encoding) else str
    more = f" and {len(values) - FEW_NAMES} more" if len(values) > FEW_NAMES else ""
    return ", ".join(shown(value) for value in values[:FEW_NAMES]) + more


def color_names(colors: Sequence[int]) -> str:
    """A few colors in words."""
    more = f" and {len(colors) - FEW_NAMES} more" if len(colors) > FEW_NAMES else ""
    return ", ".join(map(color_text, colors[:FEW_NAMES])) + more
