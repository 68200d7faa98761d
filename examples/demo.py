"""``brpg demo``: trains the same segmenter without and with the prototype head, and shows what the head did."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from brpg_lib.examples.networks import NAMES
from brpg_lib.examples.progress import progress_bar
from brpg_lib.examples.report import write_report
from brpg_lib.examples.settings import DATASETS, FRAMEWORKS, SIZES, Settings
from brpg_lib.examples.trainers.loop import train
from brpg_lib.examples.trainers.losses import LOSSES
from brpg_lib.files import save_atomically

RUNS = {"baseline": False, "head": True}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="brpg demo", description=__doc__)
    p.add_argument("--framework", choices=FRAMEWORKS, default="u2pl", help="trainer (default: %(default)s)")
    p.add_argument("--data", choices=DATASETS, default="digits", help="dataset (default: %(default)s)")
    p.add_argument("--root", help="directory of the dataset (all but digits)")
    p.add_argument(
        "--split",
        help="camvid: name of a partition in splits/ (default: 1_8_seed0); voc, voc_blended, cityscapes, coco: "
        "directory with labeled.txt and unlabeled.txt, and val.txt where the dataset has no list to test on",
    )
    p.add_argument("--num-classes", type=int, help="folder: number of classes; labels are 0..N-1, or 255 where ignored")
    p.add_argument("--network", choices=NAMES, default="compact", metavar="NAME",
                   help=f"among {', '.join(NAMES)} (default: %(default)s)")  # fmt: skip
    p.add_argument(
        "--loss", choices=tuple(LOSSES), default=Settings.loss, help="supervised loss (default: %(default)s)"
    )
    p.add_argument("--pretrained", action="store_true", help="start the encoder from ImageNet weights (a download)")
    p.add_argument("--seed", type=int, default=0, help="seed of both runs (default: %(default)s)")
    p.add_argument("--device", help="torch device (default: cuda if there is one, else cpu)")
    p.add_argument("--iters", type=int, help="training steps of each run (default: 400 for u2pl, 320 for unimatch)")
    p.add_argument("--size", type=int, help="side of the crops in pixels (default: 33 for digits, 129 otherwise)")
    p.add_argument("--batch-size", type=int, default=12, help="labeled images per step, and unlabeled (%(default)s)")
    p.add_argument("--resume", action="store_true", help="go on where an interrupted demo of that name stopped")
    p.add_argument("--name", help="name of the run (default: DATA-FRAMEWORK-SEED)")
    p.add_argument("--out", type=Path, default=Path("runs"), help="where runs are written (default: %(default)s)")
    return p


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Checked settings.

    Raises:
        ValueError: A number is out of range, or the device is not there.
    """
    settings = Settings(
        framework=arguments.framework,
        data=arguments.data,
        seed=arguments.seed,
        iterations=400 if arguments.iters is None else arguments.iters,
        size=SIZES[arguments.data] if arguments.size is None else arguments.size,
        batch_size=arguments.batch_size,
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        root=arguments.root,
        split=arguments.split,
        num_classes=arguments.num_classes,
        network=arguments.network,
        pretrained=arguments.pretrained,
        loss=arguments.loss,
    )
    for flag, value, least in (
        ("--iters", settings.iterations, 1),
        ("--size", settings.size, 17),
        ("--batch-size", settings.batch_size, 2),
        ("--seed", settings.seed, 0),
    ):
        if value < least:
            raise ValueError(f"{flag}: expected at least {least}, found {value}")
    try:
        torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {settings.device} cannot be used ({str(error).splitlines()[0]})") from error
    return settings


def main(argv: list[str] | None = None) -> int:
    """Runs the demo.

    Returns:
        Exit status: 0 for success, 2 for wrong usage or unusable data.
    """
    arguments = parser().parse_args(argv)
    console = Console()
    try:
        settings = settings_of(arguments)
        data = settings.load_data()
        folder = arguments.out / (arguments.name or f"{settings.data}-{settings.framework}-{settings.seed}")
        folder.mkdir(parents=True, exist_ok=True)
        console.print(f"[bold]{settings.framework}[/] on {data.description}")
        console.print(f"{settings.iterations} steps without and with the head, seed {settings.seed}, {settings.device}")
        results = run_both(settings, folder, arguments.resume, console)
    except (ValueError, OSError) as error:
        print(f"brpg demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("brpg demo: interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    write_report(results, settings, data, folder, console)
    return 0


def run_both(settings: Settings, folder: Path, resume: bool, console: Console) -> dict[str, dict[str, Any]]:
    """Trains both, one after the other, each in a process of its own so that its peak memory is its own."""
    results = {}
    with progress_bar(console) as bar:
        names = {"baseline": "without head", "head": "with head"}
        tasks = {run: bar.add_task(names[run], total=settings.iterations, start=False) for run in RUNS}
        for run, with_head in RUNS.items():
            bar.start_task(tasks[run])
            for message in run_apart(settings, with_head, folder / f"{run}.pt", resume):
                if isinstance(message, int):
                    bar.update(tasks[run], completed=message)
                else:
                    results[run] = message
    return results


def run_apart(
    settings: Settings, with_head: bool, checkpoint: Path, resume: bool, threads: int | None = None
) -> Iterator[int | dict[str, Any]]:
    """Trains in a fresh process, with so many threads; yields the iterations done and at last the result."""
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # threads that spin for long crawl on a busy machine
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=(sender, settings, with_head, checkpoint, resume, threads), daemon=True
    )
    process.start()
    sender.close()
    try:
        while True:
            try:
                message = receiver.recv()
            except EOFError:
                process.join()
                raise OSError(f"the training process ended with exit code {process.exitcode}") from None
            if isinstance(message, Exception):
                raise message
            if isinstance(message, Path):
                yield torch.load(message, weights_only=True)
                return
            yield message
    finally:
        process.join(timeout=5)
        process.terminate()


def _child(
    sender: Connection, settings: Settings, with_head: bool, checkpoint: Path, resume: bool, threads: int | None
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        result = train(settings, with_head, checkpoint, resume, sender.send)
        path = checkpoint.with_suffix(".result.pt")
        save_atomically(result, path)
        sender.send(path)
    except (BrokenPipeError, KeyboardInterrupt):
        return  # nobody listens any more; the last checkpoint stays
    except (ValueError, OSError) as error:
        sender.send(error)


if __name__ == "__main__":
    sys.exit(main())
