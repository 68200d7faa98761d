"""What unlabeled images add, and the head: trainings on the same batches, over seeds, splits and frameworks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from brpg_lib.benchmarks import accuracy_report, command
from brpg_lib.benchmarks.accuracy_rows import BASELINE
from brpg_lib.benchmarks.compare.runs import ALL_LABELS, REFERENCES
from brpg_lib.benchmarks.measure import environment
from brpg_lib.config import SMALL_DATA
from brpg_lib.examples.training.apart import result_of, run_apart
from brpg_lib.examples.training.frameworks import TRAINERS
from brpg_lib.examples.training.options import add_training_options, chosen, setting
from brpg_lib.examples.training.processes import usable_device
from brpg_lib.examples.training.progress import progress_bar
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.examples.training.recipe_files import ALIASES
from brpg_lib.files import write_atomically

HEAD = "BRPG"
CHANGES: dict[str, Mapping[str, Any]] = {
    "no confidence separation": {"separate_confidence": False},
    "no split": {"split_fraction": 0.0},
    "1 + 1 prototypes": {"num_prototypes": (1, 1)},
    "3 + 3 prototypes": {"num_prototypes": (3, 3)},
    "threshold 0.6": {"confidence_threshold": 0.6},
    "threshold 0.95": {"confidence_threshold": 0.95},
    "confidence-weighted centroids": {"centroid": "confidence"},
    "temperature 0.05": {"temperature": 0.05},
    "temperature 0.3": {"temperature": 0.3},
    "weight 0.1": {"loss_weight": 0.1},
    "weight 0.3": {"loss_weight": 0.3},
    "clustered once": {"recluster_every": None},
    "starts at 5%": {"warmup": 0.05},
    "starts at 50%": {"warmup": 0.5},
    "starts when filled": {"min_rows": 50, "max_collect": 0.25},
    "class-balanced rows": {"class_balance": 1.0},
    "rows of rare classes": {"rare_class_fallback": True},
    "balanced points": {"point_balance": 1.0},
    "balanced points, weight 0.1": {"point_balance": 1.0, "loss_weight": 0.1},
    "balanced points, weight 0.3": {"point_balance": 1.0, "loss_weight": 0.3},
    "points by class": {"pseudo_label_share": 0.5},
    "points by class, weight 0.3": SMALL_DATA,
    "prototypes multiplied in": {"second_opinion": "product"},
    "prototypes must agree": {"second_opinion": "agreement"},
}
"""What differs from the published settings: the paper's ablations, and what it does not have."""
VARIANTS = (BASELINE, HEAD, *CHANGES)
SCORES = ("steps", "class_names", "miou", "boundary_miou", "iou", "boundary_iou", "student")


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        recipe: All of its choices, the head's included.
        variant: :data:`LABELS_ALONE`, :data:`ALL_LABELS`, or one of :data:`VARIANTS`.
    """

    recipe: Recipe
    variant: str

    @property
    def name(self) -> str:
        """Of its files."""
        r = self.recipe
        framework = "" if r.framework == "supervised" else r.framework
        variant = self.variant.replace(",", "").replace(" ", "-")
        parts = (r.data, r.split or "", framework, variant, f"seed{r.seed}")
        return "_".join(part for part in parts if part)

    @property
    def with_head(self) -> bool:
        """Whether the prototype head takes part."""
        return self.variant not in (BASELINE, *REFERENCES)


def trainings_of(arguments: argparse.Namespace) -> list[Training]:
    """All trainings, seed by seed, so that an interrupted sweep has complete pairs.

    Raises:
        ValueError: An option is wrong.
    """
    trainings = []
    for seed in arguments.seeds:
        for split in arguments.splits or [None]:
            shared: dict[str, Any] = {"seed": seed}
            if split is not None:
                shared["split"] = split.format(seed=seed)
            for variant in REFERENCES:
                own = {"framework": "supervised", "all_labels": variant == ALL_LABELS}
                trainings.append(Training(chosen(arguments, shared | own), variant))
            for framework in arguments.frameworks:
                for variant in arguments.variants:
                    own = {"framework": framework, **changes_of(variant, arguments.set)}
                    trainings.append(Training(chosen(arguments, shared | own), variant))
    return trainings


def changes_of(variant: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a variant changes in a recipe; what was asked for goes to all heads."""
    if variant == BASELINE:
        return {}
    own = {*ALIASES, *(field.name for field in fields(Recipe))}
    changes = {**asked, **CHANGES.get(variant, {})}
    return {name if name in own else f"head.{name}": value for name, value in changes.items()}


def perform(
    training: Training, folder: Path, device: str, threads: int, progress: Callable[[int], None]
) -> dict[str, Any]:
    """What a training came to: from its file if it is done, else trained, from its checkpoint if there is one.

    Args:
        training: The training.
        folder: Of the files.
        device: Torch device.
        threads: Of its process.
        progress: Told the number of finished steps.

    Raises:
        ValueError: The file is of other settings.
    """
    path = folder / f"{training.name}.json"
    settings = json.loads(json.dumps(training.recipe.to_dict()))
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text())
        if _chosen(known["settings"]) != _chosen(settings):
            raise ValueError(f"{path}: made with other settings; choose another --out, or delete it")
        return known
    checkpoint = folder / f"{training.name}.pt"
    for message in run_apart(training.recipe, training.with_head, checkpoint, True, device, threads):
        if isinstance(message, int):
            progress(message)
        else:
            result = message
    found = {
        "variant": training.variant,
        "settings": settings,
        "environment": environment(torch.device(device)) | {"threads": threads},
        "seconds": result["seconds"],
        "peak_memory_mb": result["peak_memory"],
        **{name: result[name] for name in SCORES},
    }
    write_atomically(json.dumps(found, indent=2) + "\n", path)
    checkpoint.unlink()
    result_of(checkpoint).unlink()
    return found


def _chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not left open; an earlier version did not know all of these."""
    return {name: value for name, value in settings.items() if value is not None}


def perform_all(
    trainings: Sequence[Training], folder: Path, device: str, jobs: int, console: Console
) -> list[dict[str, Any]]:
    """The results of all trainings, in their order; the page grows with each."""
    threads = max(1, torch.get_num_threads() // jobs)
    results: list[dict[str, Any]] = []
    with progress_bar(console) as bar, ThreadPoolExecutor(jobs) as pool:
        share = bar.add_task("all trainings", total=float(len(trainings)))
        done = [0.0] * len(trainings)

        def perform_one(index: int) -> dict[str, Any]:
            recipe = trainings[index].recipe
            steps = recipe.epochs * (recipe.epoch_steps or 1)

            def progress(count: float) -> None:
                done[index] = min(1.0, count / steps)
                bar.update(share, completed=sum(done))

            found = perform(trainings[index], folder, device, threads, progress)
            progress(steps)
            return found

        try:
            for result in pool.map(perform_one, range(len(trainings))):
                results.append(result)
                accuracy_report.write(results, folder)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="accuracy", description=__doc__)
    p.add_argument("--splits", nargs="+", metavar="NAME", help="camvid: partitions; {seed} becomes the seed")
    semi_supervised = [name for name in TRAINERS if name != "supervised"]
    p.add_argument("--frameworks", nargs="+", choices=semi_supervised, default=semi_supervised, metavar="NAME",
                   help=f"among {', '.join(semi_supervised)} (default: all)")  # fmt: skip
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    known = ", ".join(map(repr, VARIANTS)).replace("%", "%%")  # argparse formats its help
    p.add_argument("--variants", nargs="+", choices=VARIANTS, default=[BASELINE, HEAD], metavar="NAME",
                   help=f"among {known} (default: the first two)")  # fmt: skip
    add_training_options(p)
    p.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE",
                   help="a field of the recipe, or of the head; may be repeated")  # fmt: skip
    p.add_argument(
        "--jobs", type=int, default=1, help="trainings at the same time, which share the cores (%(default)s)"
    )
    p.add_argument("--out", type=Path, default=Path("runs/accuracy"), metavar="DIR", help="(default: %(default)s)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is not trained yet, and write the page.

    Returns:
        Exit status: 0 for success, 2 for wrong usage or unusable data, 130 for an interruption.
    """
    arguments = parser().parse_args(argv)
    arguments.set = dict(arguments.set)
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    try:
        if arguments.jobs < 1:
            raise ValueError(f"--jobs: expected at least 1, found {arguments.jobs}")
        device = str(usable_device(arguments.device))
        results = perform_all(trainings_of(arguments), arguments.out, device, arguments.jobs, console)
    except (ValueError, OSError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("accuracy: interrupted; the same command goes on", file=sys.stderr)
        return 130
    for table in accuracy_report.tables(results):
        console.print(table.rich())
    for sentence in accuracy_report.sentences(results):
        console.print(sentence)
    console.print(f"page: {arguments.out / accuracy_report.PAGE}")
    return 0


if __name__ == "__main__":
    command.with_quiet_threads()
    sys.exit(main())
