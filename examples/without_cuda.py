"""Runs a script that insists on CUDA on a machine without: ``python -m brpg_lib.examples.without_cuda SCRIPT ARGS``.

For trying a training script out, not for training: ``.cuda()`` leaves everything on the CPU, NCCL becomes gloo, mixed
precision becomes bfloat16, and synchronized batch norm plain batch norm. Works under torchrun too. Where there is CUDA,
it changes nothing.
"""

from __future__ import annotations

import atexit
import os
import runpy
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

_init_process_group = dist.init_process_group


class _DistributedDataParallel(nn.parallel.DistributedDataParallel):
    """Takes no notice of device indices."""

    def __init__(self, module: nn.Module, device_ids: Any = None, output_device: Any = None, **options: Any) -> None:
        super().__init__(module, **options)


class _SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Plain batch norm, for networks that are built with synchronized one."""

    @staticmethod
    def convert_sync_batchnorm(module: nn.Module, process_group: Any = None) -> nn.Module:
        """The module as it is."""
        return module

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any will do."""


def stay_on_the_cpu() -> None:
    """Change this process so that CUDA calls do nothing."""

    def itself(x: Any, *args: Any, **kwargs: Any) -> Any:
        return x

    def autocast(enabled: bool = True, **options: Any) -> torch.autocast:
        return torch.autocast("cpu", enabled=enabled)

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        _init_process_group("gloo", *args, **kwargs)

    for owner in (torch.Tensor, nn.Module, torch.UntypedStorage):
        setattr(owner, "cuda", itself)  # noqa: B010, a declared attribute may not be assigned to
    torch.cuda.is_available = lambda: False  # or it would ask for the number of devices, with NVML
    torch.cuda.device_count = lambda: 1
    torch.cuda.set_device = lambda device: None
    dist.init_process_group = init_process_group
    nn.parallel.DistributedDataParallel = _DistributedDataParallel  # type: ignore[assignment, misc]
    setattr(torch.cuda.amp, "autocast", autocast)  # noqa: B010
    setattr(torch.cuda.amp, "GradScaler", partial(torch.amp.GradScaler, "cpu"))  # noqa: B010
    nn.SyncBatchNorm = _SyncBatchNorm  # type: ignore[assignment, misc]
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Run a script as if it had been started by itself."""
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")
    if dist.is_initialized():
        # gloo may abort while Python takes its threads down, which NCCL does not: leave before, once all are done.
        dist.barrier()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)


def main() -> None:
    """Run the script named on the command line."""
    script, *arguments = sys.argv[1:]
    if not torch.cuda.is_available():
        stay_on_the_cpu()
    run_script(script, arguments)


if __name__ == "__main__":
    main()
