"""``brpg predict``: masks of your images by a trained network, and where to look for mistakes."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from brpg_lib.examples.training.apart import loaders
from brpg_lib.examples.training.images import Images, ReadImage, find_images, of_one_size
from brpg_lib.examples.training.prediction import Predicted, predict
from brpg_lib.examples.training.processes import usable_device
from brpg_lib.examples.training.progress import progress_bar
from brpg_lib.examples.training.reports.prediction import INDEX, Pages, Row, maps_of
from brpg_lib.examples.training.trained import Trained, load_trained
from brpg_lib.files import write_atomically

MADE_BY = "prediction.json"
WRITERS = 4
"""Threads that write, while the network predicts."""
INDEX_EVERY = 10.0
"""Seconds between writings of the index: what a killed run has to do again at most."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="brpg predict",
        description="Write a mask of each image, an overlay, and maps of doubt: the entropy of the network's "
        "probabilities, and where the network and the nearest prototype disagree. index.csv lists the images, those "
        "most worth checking first. Started again, it goes on with the images that are left.",
    )
    p.add_argument("checkpoint", type=Path, help="last.pt or best.pt of brpg train, or head.pt of brpg demo")
    p.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help="image files, or folders of them")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    p.add_argument("--prototypes", action="store_true",
                   help="masks by the nearest prototype of the head, not by the network's logits")  # fmt: skip
    view = p.add_mutually_exclusive_group()
    view.add_argument("--window", type=int, metavar="SIDE",
                      help="show the network windows of this side, which overlap by a third, where an image is larger "
                      "(default: as the training validated)")  # fmt: skip
    view.add_argument("--whole", action="store_true", help="show it whole images, however large")
    p.add_argument("--batch-size", type=int, default=8, metavar="N",
                   help="windows at a time, or whole images of as many pixels (default: %(default)s)")  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="predict anew what is there already")
    p.add_argument("--device", help="torch device (default: cuda if there is one, else cpu)")
    p.add_argument("--workers", type=int, help="processes that read images (default: 4 beside a GPU, else none)")
    return p


def main(argv: list[str] | None = None) -> int:
    """Predicts.

    Returns:
        Exit status: 0 for success, 1 if images could not be read, 2 for wrong usage, 130 for an interruption.
    """
    arguments = parser().parse_args(argv)
    try:
        failed = run(arguments, Console())
    except ModuleNotFoundError as error:
        print(f"brpg predict needs {error.name} for this: pip install 'brpg-lib[examples]'", file=sys.stderr)
        return 2
    except torch.cuda.OutOfMemoryError:
        print("brpg predict: out of memory; --window shows the network parts of an image, --batch-size 1 one at a "
              "time", file=sys.stderr)  # fmt: skip
        return 2
    except (ValueError, OSError) as error:
        print(f"brpg predict: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("brpg predict: interrupted; the same command goes on with the images that are left", file=sys.stderr)
        return 130
    for what in failed:
        print(f"brpg predict: {what}", file=sys.stderr)
    if failed:
        print(f"brpg predict: {len(failed)} images could not be read and were left out", file=sys.stderr)
    return 1 if failed else 0


def run(arguments: argparse.Namespace, console: Console) -> list[str]:
    """Predicts what is not there yet; returns what is wrong with images that cannot be read.

    Raises:
        ValueError: Something on the command line is wrong.
    """
    for name, value, least in (("window", arguments.window, 17), ("batch-size", arguments.batch_size, 1),
                               ("workers", arguments.workers, 0)):  # fmt: skip
        if value is not None and value < least:
            raise ValueError(f"--{name}: expected at least {least}, found {value}")
    device = usable_device(arguments.device)
    files = find_images(arguments.images, arguments.out)
    trained = load_trained(arguments.checkpoint).to(device)
    if arguments.prototypes and trained.bank is None:
        raise ValueError(f"--prototypes: {arguments.checkpoint} holds none: trained without the head, or too short")
    window = None if arguments.whole else arguments.window or trained.recipe.window
    encoding = trained.recipe.encoding
    colors = () if encoding is None else encoding.class_colors
    pages = Pages(arguments.out, trained.class_names, trained.bank is not None, colors)
    rows = _earlier(pages, _made_by(arguments, window), arguments.overwrite)
    left = {name: path for name, path in files.items() if arguments.overwrite or not _is_done(pages, name, path, rows)}
    view = "whole images" if window is None else f"windows of {window} pixels"
    by = "nearest prototypes" if arguments.prototypes else "the network"
    console.print(f"{len(left)} of {len(files)} images to predict on {device.type}, by {by}, {view}", markup=False)
    images = Images(left, trained.recipe.short_side)
    workers = loaders(device) if arguments.workers is None else arguments.workers
    failed = []
    with _written(pages, rows) as written, progress_bar(console) as bar:
        task = bar.add_task("predicting", total=len(left))
        pixels = arguments.batch_size * (window or trained.recipe.crop) ** 2
        for group in of_one_size(images.read(workers), pixels):
            if group[0].error:
                failed.append(group[0].error)
            else:
                found = _predicted(trained, group, window, arguments.batch_size, device)
                for index, image in enumerate(group):
                    written(image, files[image.name], _one(found, index), arguments.prototypes)
            bar.advance(task, len(group))
    console.print(f"{len(rows)} images in {arguments.out / INDEX}, those most worth checking first", markup=False)
    return failed


def _predicted(
    trained: Trained, group: list[ReadImage], window: int | None, batch_size: int, device: torch.device
) -> Predicted:
    """With the precision that the training validated with."""
    kind: torch.dtype = getattr(torch, trained.recipe.precision)
    mixed = kind is not torch.float32
    shown = torch.stack([image.shown for image in group]).to(device)
    with torch.autocast(device.type, dtype=kind if mixed else None, enabled=mixed):
        return predict(
            trained.network,
            shown,
            bank=trained.bank,
            window=window,
            batch_size=batch_size if window else len(group),
            align_corners=trained.recipe.brpg.align_corners,
        )


def _one(found: Predicted, index: int) -> Predicted:
    similarity = None if found.similarity is None else found.similarity[index : index + 1]
    return Predicted(found.probabilities[index : index + 1], similarity)


def _made_by(arguments: argparse.Namespace, window: int | None) -> dict[str, Any]:
    """What predictions depend on: those of one folder have to agree in it."""
    digest = hashlib.sha256()
    with arguments.checkpoint.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    options = {"prototypes": arguments.prototypes, "window": window}
    return {"checkpoint": str(arguments.checkpoint), "sha256": digest.hexdigest(), **options}


def _earlier(pages: Pages, made_by: dict[str, Any], overwrite: bool) -> dict[str, Row]:
    """Rows of the images that are there, after looking at what made them.

    Raises:
        ValueError: They are of another checkpoint, or of other options.
    """
    path = pages.folder / MADE_BY
    before = json.loads(path.read_text()) if path.is_file() else {}
    differing = [name for name, value in made_by.items() if name != "checkpoint" and before.get(name) != value]
    if before and differing and not overwrite:
        names = ", ".join("checkpoint" if name == "sha256" else f"--{name}" for name in differing)
        raise ValueError(
            f"{pages.folder}: holds predictions of {before.get('checkpoint')} with another {names}; "
            "--overwrite removes them, --out names another place"
        )
    if before and differing:
        pages.clear()
    pages.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(json.dumps(made_by, indent=2) + "\n", path)
    pages.write_legend()
    return {} if differing else pages.read_index()


def _is_done(pages: Pages, name: str, image: Path, rows: dict[str, Row]) -> bool:
    """Whether all that is written for an image is there, and newer than the image."""
    files = pages.files(name).values()
    if name not in rows or not all(file.is_file() for file in files):
        return False
    return min(file.stat().st_mtime for file in files) >= image.stat().st_mtime


@contextmanager
def _written(pages: Pages, rows: dict[str, Row]) -> Iterator[Callable[[ReadImage, Path, Predicted, bool], None]]:
    """Writes in threads, and the index now and then; at the end, however it comes, all that was begun is there."""
    waiting: deque[Future[Row]] = deque()
    last = time.monotonic()

    def take() -> None:
        row = waiting.popleft().result()
        rows[row["name"]] = row

    def write(image: ReadImage, path: Path, found: Predicted, by_prototypes: bool) -> None:
        nonlocal last
        size = image.pixels.shape[1], image.pixels.shape[2]
        waiting.append(pool.submit(pages.write, image.name, path, image.pixels, maps_of(found, size, by_prototypes)))
        if len(waiting) > 2 * WRITERS:
            take()
        if time.monotonic() - last > INDEX_EVERY:
            pages.write_index(rows)
            last = time.monotonic()

    with ThreadPoolExecutor(WRITERS) as pool:
        try:
            yield write
        finally:
            try:
                while waiting:
                    take()
            finally:
                pages.write_index(rows)


if __name__ == "__main__":
    sys.exit(main())
