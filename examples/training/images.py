"""Images to predict: files and folders of them, under the names that their predictions get."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from brpg_lib.examples.training.data.masks import opened
from brpg_lib.examples.training.data.pairs import reduced

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Of the files in a folder that are images."""


class ReadImage(NamedTuple):
    """An image, or why it cannot be read.

    Attributes:
        name: Of its predictions.
        pixels: ``(3, H, W)`` uint8; empty where it cannot be read.
        shown: The same as the network is shown it, perhaps reduced.
        error: What is wrong with the file; else empty.
    """

    name: str
    pixels: Tensor
    shown: Tensor
    error: str


class Images(Dataset[ReadImage]):
    """Images by index.

    Args:
        files: By name.
        short_side: Larger images are reduced so that their short side has this many pixels; None leaves them.
    """

    def __init__(self, files: dict[str, Path], short_side: int | None) -> None:
        self.files, self.short_side = list(files.items()), short_side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> ReadImage:
        name, path = self.files[index]
        try:
            image = opened(path).convert("RGB")
            return ReadImage(name, reduced(image, None), reduced(image, self.short_side), "")
        except Exception as error:  # Pillow fails in many ways on damaged files
            nothing = torch.empty(0, dtype=torch.uint8)
            what = str(error) or type(error).__name__
            return ReadImage(name, nothing, nothing, what if str(path) in what else f"{path}: {what}")

    def read(self, workers: int) -> Iterable[ReadImage]:
        """All of them in order, read by so many processes."""
        return DataLoader(
            self, batch_size=None, num_workers=workers, collate_fn=_unchanged, generator=torch.Generator()
        )


def _unchanged(image: Any) -> Any:
    return image


def find_images(places: Sequence[Path], out: Path) -> dict[str, Path]:
    """Files by name: their path below the folder that was given, without suffix.

    Args:
        places: Files, and folders, which are searched for images with all folders in them.
        out: Where predictions go; nothing in it is an image to predict.

    Raises:
        ValueError: There is no such file or folder, or no image; or two images would get the same name.
    """
    found: dict[str, Path] = {}
    for place in places:
        for path, name in _images_of(place, out.resolve()):
            if name in found and found[name].resolve() != path.resolve():
                raise ValueError(
                    f"{found[name]} and {path}: both would be {name} in {out}; predict them into folders of their own"
                )
            found[name] = path
    if not found:
        raise ValueError(f"{', '.join(map(str, places))}: no images ({', '.join(SUFFIXES)})")
    return found


def _images_of(place: Path, out: Path) -> Iterator[tuple[Path, str]]:
    if place.is_file():
        yield place, place.stem
        return
    if not place.is_dir():
        raise ValueError(f"{place}: no such file or folder")
    for path in sorted(place.rglob("*")):
        below = path.relative_to(place)
        hidden = any(part.startswith(".") for part in below.parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file() and out not in path.resolve().parents:
            yield path, below.with_suffix("").as_posix()


def of_one_size(images: Iterable[ReadImage], pixels: int) -> Iterator[list[ReadImage]]:
    """Groups of neighbors that can pass a network together: of one size, with at most so many pixels, or alone.

    An image that cannot be read is a group of its own.
    """
    group: list[ReadImage] = []
    for image in images:
        readable = group and not group[0].error and not image.error
        fits = readable and group[0].shown.shape == image.shown.shape
        if group and not (fits and (len(group) + 1) * image.shown[0].numel() <= pixels):
            yield group
            group = []
        group.append(image)
    if group:
        yield group
