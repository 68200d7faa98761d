"""Which images are labeled, unlabeled and for testing: text files as U2PL, UniMatch and BRPG publish them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from brpg_lib.examples.training.data.batches import SegmentationData
from brpg_lib.examples.training.data.judgement import judged
from brpg_lib.examples.training.data.masks import Decode
from brpg_lib.examples.training.data.pairs import Pair, PairDataset

Resolve = Callable[[Path, str], Pair]
"""The files of an image of a root directory, by what a list calls it."""


@dataclass(frozen=True)
class Layout:
    """How a published dataset lies on disk.

    Attributes:
        title: Its name.
        class_names: One per class.
        directories: What must be in its root; alternatives separated by ``|``.
        resolve: From a name in a list that gives no label file to the files.
        val: List of the images to test on, below the root; None where ``--val`` has to name one.
        decode: See :class:`~brpg_lib.examples.training.data.pairs.PairDataset`.
        hint: See there.
        scale: Range of the random scale.
    """

    title: str
    class_names: tuple[str, ...]
    directories: tuple[str, ...]
    resolve: Resolve
    val: str | None = None
    decode: Decode | None = None
    hint: str = ""
    scale: tuple[float, float] = (0.5, 2.0)

    def check(self, root: Path) -> None:
        """Require the directories.

        Raises:
            ValueError: One is missing.
        """
        if not root.is_dir():
            raise ValueError(f"{root}: no such directory; expected the root of {self.title}")
        for names in self.directories:
            if not any((root / name).is_dir() for name in names.split("|")):
                expected = ", ".join(name.replace("|", " or ") for name in self.directories)
                raise ValueError(
                    f"{root}: expected the layout of {self.title}, with {expected} in it; found no {names}"
                )

    def load(
        self,
        root: Path,
        split: Path,
        val: Path | None = None,
        short_side: int | None = None,
        all_labels: bool = False,
    ) -> SegmentationData:
        """Read a partition.

        Args:
            root: Directory of the dataset.
            split: Directory with ``labeled.txt`` and ``unlabeled.txt``, or the first of these.
            val: List of the images to test on; None for the layout's.
            short_side: See :class:`~brpg_lib.examples.training.data.pairs.PairDataset`.
            all_labels: Whether the unlabeled images count as labeled too.

        Raises:
            ValueError: Something is missing or wrong; the message says what to fix.
        """
        self.check(root)
        labeled_list, unlabeled_list = partition(split)
        if val is None:
            if self.val is None:
                raise ValueError(f"val: {self.title} comes without a list of its validation images; name one")
            val = root / self.val
        parts = []
        labeled_lists = (labeled_list, unlabeled_list) if all_labels else (labeled_list,)
        for paths, has_labels in ((labeled_lists, True), ((unlabeled_list,), False), ((val,), True)):
            pairs = [self.pair(root, line, has_labels) for path in paths for line in lines_of(path)]
            parts.append(PairDataset(pairs, len(self.class_names), short_side, self.decode, self.hint))
        labeled, unlabeled, test = parts
        require_apart(labeled_list, labeled, unlabeled, test)
        masks = judged(root, labeled, test, self.class_names, self.hint)
        return SegmentationData(
            labeled=labeled,
            unlabeled=unlabeled,
            test=test,
            class_names=self.class_names,
            flip=True,
            scale=self.scale,
            description=f"{self.title}: {len(labeled)} labeled, {len(unlabeled)} unlabeled, {len(test)} to test on",
            masks=masks,
        )

    def pair(self, root: Path, line: str, labeled: bool) -> Pair:
        """The files that a line of a list means: ``IMAGE LABEL`` below the root, or the name of an image."""
        fields = line.split()
        if len(fields) > 2:
            raise ValueError(f"{line!r}: expected an image, or an image and its label, in a line of a list")
        found = self.resolve(root, fields[0])
        if len(fields) == 2:
            listed = root / fields[1]
            found = Pair(root / fields[0], listed if listed.is_file() else found.label)
        return found if labeled else found._replace(label=None)


def partition(split: Path) -> tuple[Path, Path]:
    """The lists of labeled and unlabeled images.

    Raises:
        ValueError: One is missing.
    """
    labeled = split / "labeled.txt" if split.is_dir() else split
    unlabeled = labeled.with_name(labeled.name.replace("labeled", "unlabeled"))
    for path in (labeled, unlabeled):
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected labeled.txt and unlabeled.txt of a partition")
    return labeled, unlabeled


def lines_of(path: Path) -> list[str]:
    """Lines of a list that are not empty.

    Raises:
        ValueError: There is no such file, or nothing in it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: lists no images")
    return lines


def require_apart(source: Path, labeled: PairDataset, unlabeled: PairDataset, test: PairDataset) -> None:
    """Require that no image is both trained on and tested on, or labeled and unlabeled.

    Raises:
        ValueError: One is.
    """
    parts: Sequence[tuple[str, PairDataset]] = (("labeled", labeled), ("unlabeled", unlabeled), ("to test on", test))
    for index, (one, first) in enumerate(parts):
        for other, second in parts[index + 1 :]:
            both = {pair.image for pair in first.pairs} & {pair.image for pair in second.pairs}
            if both and (one, other) != ("labeled", "unlabeled"):
                raise ValueError(f"{source}: {sorted(both)[0].name} is both {one} and {other}")
