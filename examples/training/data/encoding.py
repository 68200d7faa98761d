"""Which class a value or a color of a label image means, where it is not simply the class's index."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brpg_lib.examples.training.data.augment import IGNORE_INDEX

IGNORE, OTHER = "ignore", "other"
"""In place of a class: pixels that do not count; in place of a value: every value that is not named."""
UNKNOWN = -1
"""What a value decodes to that means no class."""
LARGEST = 65535
"""Value of a 16-bit label image."""

_COLOR = r"#[0-9a-fA-F]{6}|\d{1,3}\s*[,\s]\s*\d{1,3}\s*[,\s]\s*\d{1,3}"
_NAMED = re.compile(rf"(?P<name>[^#].*?)\s*[=:]\s*(?P<color>{_COLOR}|{OTHER})\s*(:.*)?")
_COLOR_FIRST = re.compile(rf"(?P<color>{_COLOR})(?:[\s,;:]+(?P<name>\S.*))?")


@dataclass(frozen=True)
class Encoding:
    """From what label images hold to class indices.

    >>> binary = Encoding.of_values(["0=0", "255=1"])
    >>> binary(np.array([[0, 255, 7]]), Path("a.png")).tolist()
    [[0, 1, -1]]
    >>> colors = Encoding.of_palette(["road=#804080", "ignore=#000000"])
    >>> colors(np.array([[0x804080, 0]]), Path("a.png")).tolist(), colors.names
    ([[0, 255]], ('road',))

    Attributes:
        classes: Class of each value, :data:`IGNORE_INDEX` where it is ignored.
        other: Class of all other values; :data:`UNKNOWN` where they are refused.
        colors: Whether the values are colors, ``0xRRGGBB``.
        names: Of the classes, as far as a palette names them.
    """

    classes: Mapping[int, int]
    other: int = UNKNOWN
    colors: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def of_values(cls, setting: Sequence[str]) -> Encoding:
        """From :func:`mask_values`; 255 is ignored unless it is named."""
        classes, other = {IGNORE_INDEX: IGNORE_INDEX}, UNKNOWN
        for entry in setting:
            value, _, name = entry.partition("=")
            index = IGNORE_INDEX if name == IGNORE else int(name)
            if value == OTHER:
                other = index
            else:
                classes[int(value)] = index
        return cls(classes, other)

    @classmethod
    def of_palette(cls, setting: Sequence[str]) -> Encoding:
        """From :func:`palette`."""
        classes: dict[int, int] = {}
        names: dict[str, int] = {}
        other = UNKNOWN
        for entry in setting:
            name, _, color = entry.rpartition("=")
            index = IGNORE_INDEX if name == IGNORE else names.setdefault(name, len(names))
            if color == OTHER:
                other = index
            else:
                classes[int(color[1:], 16)] = index
        return cls(classes, other, True, tuple(names))

    @property
    def num_classes(self) -> int:
        """C: one more than the last class that is named."""
        return 1 + max((index for index in (*self.classes.values(), self.other) if index != IGNORE_INDEX), default=-1)

    def __call__(self, values: np.ndarray, path: Path) -> np.ndarray:
        """Classes ``(H, W)`` int64 of values ``(H, W)`` int64; :data:`UNKNOWN` where they mean none."""
        known = np.array(sorted(self.classes))
        means = np.array([self.classes[value] for value in known])
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
        found: np.ndarray = np.where(known[place] == values, means[place], self.other)
        return found

    def shown(self, value: int) -> str:
        """A value as a person would write it."""
        return color_text(value) if self.colors else str(value)

    def values_of(self, index: int) -> list[str]:
        """The values that mean a class, as a person would write them."""
        return [self.shown(value) for value, own in self.classes.items() if own == index] + (
            [OTHER] if self.other == index else []
        )

    @property
    def class_colors(self) -> tuple[tuple[int, int, int], ...]:
        """The first color of each class; empty where there are none, or a class has none of its own."""
        firsts = {index: value for value, index in reversed(list(self.classes.items()))}
        if not self.colors or any(index not in firsts for index in range(self.num_classes)):
            return ()
        return tuple(rgb(firsts[index]) for index in range(self.num_classes))


def mask_values(given: object) -> list[str]:
    """The setting ``mask_values`` in its plain form: ``VALUE=CLASS``, by value.

    >>> mask_values("0,255")
    ['0=0', '255=1']
    >>> mask_values({255: 1, 0: 0, "other": "ignore"})
    ['0=0', '255=1', 'other=ignore']

    Args:
        given: Values by class (``"0,255"`` or ``[0, 255]``), or the class or ``ignore`` of each value
            (``"0=0,255=1,128=ignore"``, a list of such, or a mapping); ``other`` stands for every other value.

    Raises:
        ValueError: It says something else, or leaves a class without a value.
    """
    if isinstance(given, Mapping):
        entries = [f"{value}={index}" for value, index in given.items()]
    elif isinstance(given, str):
        entries = [entry.strip() for entry in given.split(",") if entry.strip()]
    elif isinstance(given, Sequence):
        entries = [str(entry).strip() for entry in given]
    else:
        entries = []
    if entries and not any("=" in entry for entry in entries):
        entries = [f"{value}={index}" for index, value in enumerate(entries)]
    found: dict[str, str] = {}
    for entry in entries:
        value, equals, index = (part.strip() for part in entry.partition("="))
        fits = value == OTHER or (value.isdecimal() and int(value) <= LARGEST)
        if not (equals and fits and (index == IGNORE or (index.isdecimal() and int(index) < IGNORE_INDEX))):
            raise ValueError(
                f"mask_values: expected values by class, such as 0,255, or VALUE=CLASS with values 0..{LARGEST} or "
                f"'{OTHER}' and classes 0..{IGNORE_INDEX - 1} or '{IGNORE}', found {entry!r}"
            )
        value = value if value == OTHER else str(int(value))
        if value in found:
            raise ValueError(f"mask_values: value {value} is named twice")
        found[value] = index if index == IGNORE else str(int(index))
    classes = {int(index) for index in found.values() if index != IGNORE}
    if len(classes) < 2 or max(classes) >= len(classes):
        missing = sorted(set(range(max(2, *classes, 0))) - classes) if classes else [0, 1]
        raise ValueError(
            f"mask_values: expected a value for each class from 0 on, at least two; found none for class "
            f"{', '.join(map(str, missing))} in {given!r}"
        )
    return [f"{value}={found[value]}" for value in sorted(found, key=lambda v: LARGEST + 1 if v == OTHER else int(v))]


def palette(given: object) -> list[str]:
    """The setting ``palette`` in its plain form: ``NAME=#rrggbb``, in the order of the classes.

    >>> palette("background=0,0,0; road=#804080; ignore=other")
    ['background=#000000', 'road=#804080', 'ignore=other']
    >>> palette(["0 0 0", "128,64,128 road", "car:0,0,142::"])
    ['class 0=#000000', 'road=#804080', 'car=#00008e']

    Args:
        given: Lines, or one text with ``;`` between them: ``NAME=COLOR``, ``COLOR NAME``, ``COLOR``, or
            ``NAME:COLOR::`` as CVAT exports it, where a color is ``#rrggbb`` or ``r,g,b``; or a mapping from names to
            colors. ``ignore`` is the name of what does not count, ``other`` the color of every other one.

    Raises:
        ValueError: It says something else, names a color twice, or fewer than two classes.
    """
    if isinstance(given, Mapping):
        lines: Iterable[object] = [f"{name}={color}" for name, color in given.items()]
    elif isinstance(given, str):
        lines = re.split(r"[;\n]", given)
    elif isinstance(given, Sequence):
        lines = given
    else:
        raise ValueError(f"palette: expected lines such as road=#804080, found {given!r}")
    found: list[str] = []
    colors: set[str] = set()
    names: dict[str, None] = {}
    for line in (str(line).strip() for line in lines):
        match = _COLOR_FIRST.fullmatch(line) or _NAMED.fullmatch(line)
        if match is None:
            if not line or line.startswith("#"):
                continue  # a comment
            raise ValueError(f"palette: expected NAME=#rrggbb, NAME=r,g,b or r,g,b, found {line!r}")
        name = match["name"].strip() if match["name"] else f"class {len(names)}"
        color = _plain(match["color"])
        if color in colors:
            raise ValueError(f"palette: {color} is named twice")
        colors.add(color)
        if name != IGNORE:
            names[name] = None
        found.append(f"{name}={color}")
    if not 2 <= len(names) < IGNORE_INDEX:
        raise ValueError(f"palette: expected 2 to {IGNORE_INDEX - 1} classes, found {len(names)}")
    return found


def palette_file(path: Path) -> list[str]:
    """The palette in a text file, one color a line; see :func:`palette`.

    Raises:
        ValueError: It cannot be read, or holds something else.
    """
    try:
        return palette(path.read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"palette: cannot read {path} ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def packed(colors: np.ndarray) -> np.ndarray:
    """``(H, W, 3)`` uint8 -> ``(H, W)`` int64 ``0xRRGGBB``."""
    red, green, blue = (colors[..., channel].astype(np.int64) for channel in range(3))
    return red << 16 | green << 8 | blue


def rgb(color: int) -> tuple[int, int, int]:
    """``0xRRGGBB`` -> red, green, blue."""
    return color >> 16, color >> 8 & 255, color & 255


def color_text(color: int) -> str:
    """``0xRRGGBB`` -> ``"#rrggbb"``."""
    return f"#{color:06x}"


def _plain(color: str) -> str:
    if color == OTHER or color.startswith("#"):
        return color.lower()
    channels = [int(part) for part in re.split(r"[,\s]+", color)]
    if max(channels) > 255:
        raise ValueError(f"palette: expected red, green and blue from 0 to 255, found {color!r}")
    return "#" + "".join(f"{channel:02x}" for channel in channels)
