"""Whether label images can be what a training needs, and which settings would make them so."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.encoding import IGNORE, OTHER, UNKNOWN, Encoding, color_text, rgb
from brpg_lib.examples.training.data.masks import Decode, Tally, color_names, tally, value_names
from brpg_lib.examples.training.data.pairs import PairDataset, spread

MAIN_SHARE = 0.002
"""Of the pixels, from which on a value or a color is no mere shade between two others."""
FEW_SHADES = 8
"""Values beside the main ones that may be rare classes; more of them are what compression or resizing leaves."""
MOST_CLASSES = 64
"""Colors of a mask, at most; a photograph has more."""


@dataclass(frozen=True)
class Masks:
    """What the label images of a dataset hold.

    Attributes:
        labeled: Of the images to train on.
        test: Of those to test on.
        notices: What a user should know before training, in sentences.
    """

    labeled: Tally
    test: Tally
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Suggestion:
    """Settings under which the label images can be trained on.

    Attributes:
        num_classes: C.
        mask_values: The setting, in the short form; None where values are class indices.
        palette: The setting, in its plain form; None without colors.
        why: What was found.
        shades: Whether values or colors between the main ones become ignored.
    """

    num_classes: int
    mask_values: str | None
    palette: tuple[str, ...] | None
    why: str
    shades: bool = False

    @property
    def options(self) -> list[str]:
        """For the command line."""
        if self.palette is not None:
            return ["--palette", "; ".join(self.palette)]
        if self.mask_values is not None:
            return ["--mask-values", self.mask_values]
        return ["--num-classes", str(self.num_classes)]

    @property
    def text(self) -> str:
        """The options as they are typed."""
        return shlex.join(self.options)


def judged(
    root: Path,
    labeled: PairDataset,
    test: PairDataset,
    class_names: Sequence[str],
    hint: str = "",
) -> Masks:
    """Read the files, or a spread of them, count what the label images hold, and refuse what cannot be right.

    Args:
        root: Directory of the dataset.
        labeled: What is trained on.
        test: What is tested on.
        class_names: One per class.
        hint: What to do about label images that hold something else, where the layout knows it.

    Raises:
        ValueError: A file is damaged, or label images hold something else than expected, or show one class only; the
            message says what to do.
    """
    decode, count = labeled.decode, len(class_names)
    first, second = (
        tally([pair.label for pair in spread(part.pairs) if pair.label is not None], decode, count)
        for part in (labeled, test)
    )
    for found in (first, second):
        fault = fault_in_values(
            found, count, decode, hint or f"brpg check-data {root} tells what the masks hold, and what to type"
        )
        if fault is not None:
            raise ValueError(fault)
    labeled.check()
    test.check()
    fault = fault_in_classes(root, first, second, class_names, decode, bool(hint))
    if fault is not None:
        raise ValueError(fault)
    return Masks(first, second, tuple(absent(first, second, class_names, len(labeled), len(test))))


def fault_in_values(found: Tally, num_classes: int, decode: Decode | None, hint: str) -> str | None:
    """What is wrong with the values of label images, in a line with what to do; None if they are classes."""
    if found.colored:
        path, mode = found.colored[0]
        return (
            f"{path}: expected one class index per pixel (a grayscale or palette PNG), found colors (mode {mode}) in "
            f"{len(found.colored)} of {found.masks} masks; {hint}"
        )
    if not found.class_pixels[UNKNOWN]:
        return None
    wrong = wrong_values(found, num_classes, decode)
    if isinstance(decode, Encoding):
        setting = "palette" if decode.colors else "mask_values"
        expected = f"values that {setting} names"
        told = f"name them too, or add {IGNORE}={OTHER}" if decode.colors else f"name them too, or add {OTHER}={IGNORE}"
    else:
        expected = f"labels 0..{num_classes - 1} or {IGNORE_INDEX} (ignored)"
        advice = suggestion_for_values(found.pixels, num_classes)
        told = hint if advice is None else f"{advice.why}: {advice.text}"
    path = found.examples[wrong[0]]
    return (
        f"{path}: expected {expected}, found {value_names(wrong, decode)} in {found.class_pixels[UNKNOWN]} pixels, "
        f"in {found.class_images[UNKNOWN]} of {found.masks} masks; {told}"
    )


def wrong_values(found: Tally, num_classes: int, decode: Decode | None) -> list[int]:
    """Values that mean no class, the most frequent first."""
    if isinstance(decode, Encoding):
        wrong = [v for v in found.pixels if decode.classes.get(v, decode.other) == UNKNOWN]
    else:
        wrong = [v for v in found.pixels if v != IGNORE_INDEX and not 0 <= v < num_classes]
    return sorted(wrong, key=lambda value: (-found.pixels[value], value))


def fault_in_classes(
    root: Path,
    labeled: Tally,
    test: Tally,
    class_names: Sequence[str],
    decode: Decode | None,
    hinted: bool = False,
) -> str | None:
    """What is wrong if fewer than two classes occur, in a line; None if there are two or more.

    Args:
        root: Directory of the dataset.
        labeled: Label images of what is trained on.
        test: Of what is tested on.
        class_names: One per class.
        decode: What the values mean.
        hinted: Whether the layout fixes that, so that no setting can change it.
    """
    for found, which in ((labeled, "labeled"), (test, "test")):
        shown = found.shown(len(class_names))
        if len(shown) >= 2:
            continue
        told = f"class {shown[0]} ({class_names[shown[0]]})" if shown else "no class"
        ignored = found.class_pixels[IGNORE_INDEX]
        share = f" and {100 * ignored / sum(found.class_pixels.values()):.0f}% ignored pixels" if ignored else ""
        told_by_colors = isinstance(decode, Encoding) and decode.colors
        values = labeled.pixels + test.pixels
        advice = None if told_by_colors or hinted else suggestion_for_values(values, len(class_names))
        if advice is not None and advice.mask_values is not None:
            what = f"{advice.why}: {advice.text}"
        elif found is test and len(labeled.shown(len(class_names))) >= 2:
            what = "no score would mean anything; list others in val.txt, or draw them with another seed"
        else:
            what = f"nothing can be learned from that; brpg check-data {root} tells what the masks hold"
        return f"{root}: the masks of the {found.masks} {which} images show {told}{share} only; {what}"
    return None


def absent(labeled: Tally, test: Tally, class_names: Sequence[str], labeled_images: int, test_images: int) -> list[str]:
    """Sentences about classes that cannot be learned, or not be scored."""
    said = []
    for found, images, which, then in (
        (labeled, labeled_images, "labeled", "cannot be learned"),
        (test, test_images, "test", "has no score"),
    ):
        missing = [name for index, name in enumerate(class_names) if not found.class_pixels[index]]
        if missing:
            where = f"no {which} image" if found.masks == images else f"none of {found.masks} {which} images looked at"
            verb = then if len(missing) == 1 else then.replace("has", "have")
            said.append(f"in {where}: {', '.join(missing)}, which {verb}")
    return said


def suggestion_for_values(pixels: Counter[int], num_classes: int | None = None) -> Suggestion | None:
    """Settings that make classes of these values; None if none comes to mind.

    >>> suggestion_for_values(Counter({0: 90, 255: 10})).mask_values
    '0,255'
    >>> suggestion_for_values(Counter({1: 5, 2: 5, 3: 5}), 3).mask_values
    '1,2,3'
    >>> suggestion_for_values(Counter({0: 9, 1: 3, 2: 3, 255: 4})).num_classes
    3

    Args:
        pixels: How many have each value.
        num_classes: C, if it is known.
    """
    main, shades = apart(pixels)
    inner = [value for value in main if value != IGNORE_INDEX]
    suffix = f",{OTHER}={IGNORE}" if shades else ""

    def named(values: Sequence[int], why: str) -> Suggestion:
        text = ",".join(f"{v}={i}" for i, v in enumerate(values)) if shades else ",".join(map(str, values))
        return Suggestion(len(values), text + suffix, None, why, shades)

    if IGNORE_INDEX in main and (len(inner) == 1 or len(main) == num_classes):
        what = f"values {value_names(main)} look like {len(main)} classes, where {IGNORE_INDEX} is one of them"
        return named(main, what) if num_classes in (None, len(main)) else None
    if len(inner) < 2:
        return None
    top = inner[-1]
    if num_classes is None:
        if top < MOST_CLASSES and inner[0] == 0 and 2 * len(inner) > top:
            return None if shades else Suggestion(top + 1, None, None, f"values 0..{top} are class indices")
        return named(inner, f"values {value_names(inner)} look like {len(inner)} classes")
    if len(inner) == num_classes and top >= num_classes:
        return named(inner, f"values {value_names(inner)} look like the {num_classes} classes")
    if inner == list(range(num_classes + 1)) and not shades:
        entries = [f"0={IGNORE}", *(f"{value}={value - 1}" for value in inner[1:])]
        why = f"with 0 as a class of its own it is --num-classes {num_classes + 1}, and with 0 for unlabeled pixels"
        return Suggestion(num_classes, ",".join(entries), None, why)
    return None


def suggestion_for_colors(colors: Counter[int]) -> Suggestion | None:
    """Settings that make classes of these colors; None if they are those of a photograph.

    >>> suggestion_for_colors(Counter({0: 5, 0x804080: 5})).palette
    ('class 0=#000000', 'class 1=#804080')

    Args:
        colors: Pixels of each color, ``0xRRGGBB``.
    """
    if all(len(set(rgb(color))) == 1 for color in colors):  # grays: an image of values, saved as one of colors
        values = Counter({color & 255: number for color, number in colors.items()})
        found = suggestion_for_values(values)
        if found is None or found.mask_values is not None:
            return found
        text = ",".join(map(str, range(found.num_classes)))
        return Suggestion(found.num_classes, text, None, "the colors are all gray")
    main, shades = apart(colors)
    if not 2 <= len(main) <= MOST_CLASSES:
        return None
    entries = tuple(f"class {index}={color_text(color)}" for index, color in enumerate(main))
    why = f"{len(main)} colors ({color_names(main)})"
    return Suggestion(len(main), None, entries + ((f"{IGNORE}={OTHER}",) if shades else ()), why, shades)


def apart(pixels: Counter[int]) -> tuple[list[int], bool]:
    """The values that are classes, in order, and whether the others are mere shades between them."""
    total = sum(pixels.values())
    main = sorted(value for value, number in pixels.items() if number >= MAIN_SHARE * total)
    if len(pixels) - len(main) > max(FEW_SHADES, len(main)):
        return main, True
    return sorted(pixels), False
