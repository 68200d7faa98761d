"""Trainings in processes of their own: peak memory is theirs alone, and an interruption ends them at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from brpg_lib.examples.training.checkpoints import read
from brpg_lib.examples.training.loop import Run
from brpg_lib.examples.training.processes import Processes
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.examples.training.summary import summarize
from brpg_lib.files import save_atomically

GRACE = 0.3
"""Seconds between asking a process to end and ending it."""


def result_of(checkpoint: Path) -> Path:
    """Where the result of a training lies, beside its checkpoint."""
    return checkpoint.with_suffix(".result.pt")


def run_apart(
    recipe: Recipe, with_head: bool, checkpoint: Path, resume: bool, device: str, threads: int | None = None
) -> Iterator[int | dict[str, Any]]:
    """Trains in a fresh process; yields the steps done, and at last the result.

    Args:
        recipe: What to train.
        with_head: Whether the prototype head takes part.
        checkpoint: File to write, and to go on from; the result is written beside it.
        resume: Whether to go on; of a training that is done, the result is read.
        device: Torch device.
        threads: Of the process; None leaves it to torch.

    Raises:
        ValueError: The recipe is wrong, or not that of what is there.
        OSError: The process ended.
    """
    if resume and result_of(checkpoint).is_file():
        yield read(result_of(checkpoint), "recipe", recipe.to_dict())["result"]
        return
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # threads that spin for long crawl on a busy machine
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=(sender, recipe, with_head, checkpoint, resume, device, threads), daemon=True
    )
    with _interrupts_withheld():
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
                process.join()
                yield torch.load(message, weights_only=True)["result"]
                return
            yield message
    finally:  # files are written atomically, so nothing is lost that a checkpoint holds
        process.terminate()
        process.join(GRACE)
        process.kill()


@contextmanager
def _interrupts_withheld() -> Iterator[None]:
    """What starts meanwhile is deaf to Ctrl-C, which the terminal sends to all processes: this one ends the others."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else it starts with the process, and lets interrupts through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def train(
    recipe: Recipe,
    with_head: bool,
    checkpoint: Path,
    resume: bool = False,
    device: str = "cpu",
    progress: Callable[[int], object] = lambda _: None,
) -> dict[str, Any]:
    """One training in this process; see :func:`run_apart`.

    Returns:
        See :func:`~brpg_lib.examples.training.summary.summarize`.
    """
    place = torch.device(device)
    # The summary scores the end, with its predictions.
    run = Run(recipe, with_head, checkpoint, Processes(0, 1, place), loaders(place), validates=False)
    if resume and checkpoint.is_file():
        run.load(checkpoint)
    run.train(lambda run: progress(run.record.step))
    return summarize(run)


def loaders(device: torch.device) -> int:
    """Processes that prepare batches: beside a GPU, so that it never waits; a CPU has nothing to spare."""
    return min(4, os.cpu_count() or 1) if device.type == "cuda" else 0


def _child(
    sender: Connection,
    recipe: Recipe,
    with_head: bool,
    checkpoint: Path,
    resume: bool,
    device: str,
    threads: int | None,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        result = train(recipe, with_head, checkpoint, resume, device, sender.send)
        save_atomically({"recipe": recipe.to_dict(), "result": result}, result_of(checkpoint))
        sender.send(result_of(checkpoint))
    except BrokenPipeError:
        return  # nobody listens any more; the last checkpoint stays
    except (ValueError, OSError) as error:
        sender.send(error)
