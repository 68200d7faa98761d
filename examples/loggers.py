"""The head's metrics in TensorBoard, Weights & Biases or MLflow, under one name everywhere: ``brpg/<metric>``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from brpg_lib import HeadOutput

Log = Callable[[Mapping[str, float], int], None]
"""Takes numbers by name, and the step they are of."""


def named(out: HeadOutput) -> dict[str, Tensor]:
    """The loss and all metrics of a step as ``brpg/<metric>``; reading one of them waits for the device."""
    return {f"brpg/{name}": value for name, value in {"loss": out.loss.detach(), **out.metrics}.items()}


def numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """The same for a logger that takes no tensors, with one wait for all of them."""
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


def to_tensorboard(folder: Path) -> Log:
    """Writes event files."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def to_wandb(folder: Path) -> Log:
    """Logs into a new run of Weights & Biases, whose WANDB_MODE says whether it is sent."""
    import wandb

    run = wandb.init(project="brpg", dir=str(folder))
    return lambda values, step: run.log(dict(values), step=step)


def to_mlflow(folder: Path) -> Log:
    """Logs into a new run of MLflow, in a file store below the folder."""
    import mlflow

    mlflow.set_tracking_uri(folder.absolute().as_uri())
    mlflow.start_run(run_name="brpg")
    return lambda values, step: mlflow.log_metrics(dict(values), step=step)


LOGGERS: Mapping[str, Callable[[Path], Log]] = {"tensorboard": to_tensorboard, "wandb": to_wandb, "mlflow": to_mlflow}


def main(argv: Sequence[str] | None = None) -> None:
    """Trains for less than a minute, and logs every tenth step."""
    from brpg_lib.examples import own_trainer

    torch.set_num_threads(1)  # more only wait for each other in so small a network
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", choices=LOGGERS, default="tensorboard", help="which logger")
    parser.add_argument("--folder", type=Path, default=Path("runs/loggers"), help="where its files go")
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        log = LOGGERS[options.to](options.folder)
    except ModuleNotFoundError as error:
        parser.error(f"--to {options.to} needs a package that is not installed: pip install {error.name}")
    head = own_trainer.train(options.steps, log=lambda out, step: log(numbers(named(out)), step))
    print(own_trainer.summary(head))


if __name__ == "__main__":
    main()
