"""What a look into a directory of images and masks can find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brpg_lib.examples.training.data.checks.inventory import Files
from brpg_lib.examples.training.data.encoding import Encoding, color_text, mask_values, palette
from brpg_lib.examples.training.data.judgement import Suggestion
from brpg_lib.examples.training.data.masks import Decode, MaskFile, Tally


@dataclass(frozen=True)
class Given:
    """What the user says about the label images.

    Attributes:
        layout: One of :func:`~brpg_lib.examples.training.data.checks.inventory.layouts_of`, or None for the first.
        split: Directory of the lists (published datasets).
        num_classes: C.
        mask_values: See :func:`~brpg_lib.examples.training.data.encoding.mask_values`.
        palette: See :func:`~brpg_lib.examples.training.data.encoding.palette`.
        palette_text: The palette as it was typed, for the command to type next.
        seed: Of the draws.
    """

    layout: str | None = None
    split: str | None = None
    num_classes: int | None = None
    mask_values: str | None = None
    palette: Sequence[str] | None = None
    palette_text: str | None = None
    seed: int = 0

    @property
    def encoding(self) -> Encoding | None:
        """What the values mean; None where they are class indices, as far as anybody said."""
        if self.palette is not None:
            return Encoding.of_palette(palette(self.palette))
        return None if self.mask_values is None else Encoding.of_values(mask_values(self.mask_values))

    @property
    def options(self) -> list[str]:
        """For the command line of a training; empty if nothing was said."""
        if self.palette is not None:
            return ["--palette", self.palette_text or "; ".join(self.palette)]
        if self.mask_values is not None:
            return ["--mask-values", self.mask_values]
        return [] if self.num_classes is None else ["--num-classes", str(self.num_classes)]


@dataclass(frozen=True)
class Problem:
    """Something that a training would stumble over.

    Attributes:
        kind: ``"layout"``, ``"unreadable"``, ``"names"``, ``"size"``, ``"mode"``, ``"values"``, ``"classes"`` or
            ``"lists"``.
        text: In a sentence.
        files: Which files, each with what is wrong with it.
    """

    kind: str
    text: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """One image and its label image, read.

    Attributes:
        name: What joins them.
        size: Of the image; None if it cannot be read, or is not there.
        mode: Pillow's name for the kind of the image's pixels.
        turned: Whether the image is shown turned by what its camera wrote.
        mask: What the label image holds; None if it cannot be read, or is not there.
        faults: Why a file cannot be read.
    """

    name: str
    size: tuple[int, int] | None
    mode: str
    turned: bool
    mask: MaskFile | None
    faults: tuple[str, ...]


@dataclass
class Findings:
    """Everything that was found out.

    Attributes:
        root: The directory.
        layout: Its layout; None if it has none that is known.
        files: What lies in it.
        seen: What the files hold, by name.
        problems: What a training would stumble over.
        notices: What is good to know.
        suggestion: Settings for the label images that nobody gave.
        encoding: What the values mean, given or suggested.
        class_names: One per class; empty while nobody knows how many there are.
        values: All label images together, by value.
        tallies: Label images by what they are for, by class.
        lists: Number of entries of each list.
        training: What would be trained.
        commands: What to type.
    """

    root: Path
    layout: str | None = None
    files: Files = field(default_factory=lambda: Files({}, {}))
    seen: dict[str, Seen] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    suggestion: Suggestion | None = None
    encoding: Decode | None = None
    class_names: tuple[str, ...] = ()
    values: Tally = field(default_factory=Tally)
    tallies: dict[str, Tally] = field(default_factory=dict)
    lists: dict[str, int] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)

    @property
    def good(self) -> list[str]:
        """Names of images that can be read."""
        return [seen.name for seen in self.seen.values() if seen.size is not None]

    @property
    def pairs(self) -> list[str]:
        """Names of images that can be read and have a label image of their size that can be read."""
        return [
            s.name for s in self.seen.values() if s.size is not None and s.mask is not None and s.mask.size == s.size
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        sizes = Counter(f"{s.size[0]}x{s.size[1]}" for s in self.seen.values() if s.size is not None)
        colors = {
            color_text(color): {"pixels": number, "images": self.values.color_images[color]}
            for color, number in self.values.colors.most_common(256)
        }
        values = {str(v): {"pixels": n, "images": self.values.images[v]} for v, n in sorted(self.values.pixels.items())}
        shown = self.encoding.shown if isinstance(self.encoding, Encoding) else str
        return {
            "root": str(self.root),
            "layout": self.layout,
            "images": len(self.files.images),
            "masks": len(self.files.masks),
            "pairs": len(self.pairs),
            "sizes": dict(sizes.most_common()),
            "problems": [vars(problem) | {"files": list(problem.files)} for problem in self.problems],
            "notices": self.notices,
            "values": {shown(int(value)): found for value, found in values.items()},
            "colors": colors,
            "classes": [
                {
                    "index": index,
                    "name": name,
                    **{
                        which: {"pixels": tally.class_pixels[index], "images": tally.class_images[index]}
                        for which, tally in self.tallies.items()
                    },
                }
                for index, name in enumerate(self.class_names)
            ],
            "lists": self.lists,
            "training": self.training,
            "commands": self.commands,
        }


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes that have none."""
    return tuple(f"class {index}" for index in range(count))


def few(items: Sequence[str], most: int = 3) -> str:
    """The first of many, in words."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
