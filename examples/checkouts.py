"""What a checkout of a framework needs to train for a minute: made-up data, random weights, a small yaml."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from brpg_lib.adapters.launch import extended_path
from brpg_lib.adapters.registry import FRAMEWORKS
from brpg_lib.examples import scenarios
from brpg_lib.examples.made_up import FILES, NUM_CLASSES, UNLABELED, Workspace, write_images, write_lines

BRPG = {
    "samples_per_image": 200,
    "queue_size": 500,
    "grid_size": 16,
    "unlabeled_samples_per_image": 100,
    "pseudo_threshold_range": [0.1, 0.2],
    "rare_class_fallback": True,
}
"""The ``brpg:`` section: sizes for small images, and what gives all classes prototypes in an untrained network."""


def unimatch(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any]) -> Workspace:
    """A workspace for UniMatch."""
    code = "from model.backbone.resnet import resnet50 as network; network = network()"
    model = {"backbone": "resnet50", "replace_stride_with_dilation": [False, False, True], "dilations": [1, 2, 3]}
    return _unimatch(checkout, folder, epochs, brpg, model | {"model": "deeplabv3plus", "crop_size": 65}, code)


def unimatch_v2(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any]) -> Workspace:
    """A workspace for UniMatch V2."""
    code = "from model.backbone.dinov2 import DINOv2; network = DINOv2(model_name='small')"
    model = {"backbone": "dinov2_small", "model": "dpt", "lock_backbone": False, "crop_size": 70}
    return _unimatch(checkout, folder, epochs, brpg, model, code)


def _unimatch(
    checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any], model: dict[str, Any], weights: str
) -> Workspace:
    names = write_images(folder / "data")
    lists = {"labeled": "labeled.txt", "unlabeled": "unlabeled.txt", "test": "splits/pascal/val.txt"}
    for split, path in lists.items():
        write_lines(folder / path, [" ".join(FILES).format(name) for name in names[split]])
    config = model | {
        "dataset": "pascal",
        "nclass": NUM_CLASSES,
        "data_root": "data",
        "epochs": epochs,
        "batch_size": 2,
        "lr": 1e-5 if model["model"] == "dpt" else 1e-3,
        "lr_multi": 10.0,
        "criterion": {"name": "CELoss", "kwargs": {"ignore_index": 255}},
        "conf_thresh": 0.95,
        "brpg": brpg,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    pretrained = folder / f"pretrained/{config['backbone']}.pth"
    if not pretrained.exists():
        pretrained.parent.mkdir(exist_ok=True)
        code = f"import torch; torch.manual_seed(0); {weights}; torch.save(network.state_dict(), {str(pretrained)!r})"
        subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True)
    arguments = ["--config=config.yaml", "--labeled-id-path=labeled.txt", "--unlabeled-id-path=unlabeled.txt"]
    return Workspace(folder, [*arguments, "--save-path=exp"], folder / "exp/latest.pth")


def u2pl(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any]) -> Workspace:
    """A workspace for U2PL."""
    names = write_images(folder / "VOC")
    for split, path in {"labeled": "labeled.txt", "unlabeled": "unlabeled.txt", "test": "val.txt"}.items():
        write_lines(folder / "splits/pascal" / path, names[split])
    crop = {"type": "rand", "size": [65, 65]}
    dataset = {
        "type": "pascal_semi",
        "train": {"data_root": "VOC", "data_list": "splits/pascal/labeled.txt", "flip": True, "crop": crop},
        "val": {"data_root": "VOC", "data_list": "splits/pascal/val.txt", "crop": crop | {"type": "center"}},
        "batch_size": 2,
        "n_sup": 10582 - UNLABELED,  # U2PL draws the rest of PASCAL's 10582 images per epoch
        "workers": 0,
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "ignore_label": 255,
    }
    contrastive = {
        "negative_high_entropy": True,
        "low_rank": 3,
        "high_rank": 8,
        "current_class_threshold": 0.3,
        "current_class_negative_threshold": 1,
        "unsupervised_entropy_ignore": 80,
        "low_entropy_threshold": 20,
        "num_negatives": 50,
        "num_queries": 32,
        "temperature": 0.5,
    }
    trainer = {
        "epochs": epochs,
        "eval_on": True,
        "optimizer": {"type": "SGD", "kwargs": {"lr": 0.001, "momentum": 0.9, "weight_decay": 0.0001}},
        "lr_scheduler": {"mode": "poly", "kwargs": {"power": 0.9}},
        "unsupervised": {"drop_percent": 80, "apply_aug": "cutmix"},
        "contrastive": contrastive,
    }
    encoder = {
        "type": "u2pl.models.resnet.resnet50",
        "kwargs": {
            "multi_grid": True,
            "zero_init_residual": True,
            "fpn": True,
            "replace_stride_with_dilation": [False, True, True],
            "pretrained": False,
        },
    }
    decoder = {
        "type": "u2pl.models.decoder.dec_deeplabv3_plus",
        "kwargs": {"inner_planes": 256, "dilations": [1, 2, 3]},
    }
    config = {
        "dataset": dataset,
        "trainer": trainer,
        "saver": {"snapshot_dir": "checkpoints", "pretrain": "", "auto_resume": True},
        "criterion": {"type": "CELoss", "kwargs": {"use_weight": False}},
        "net": {
            "num_classes": NUM_CLASSES,
            "sync_bn": False,
            "ema_decay": 0.99,
            "encoder": encoder,
            "decoder": decoder,
        },
        "brpg": brpg,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return Workspace(folder, ["--config=config.yaml", "--seed=0"], folder / "checkpoints/ckpt.pth")


WORKSPACES: dict[str, Callable[[Path, Path, int, dict[str, Any]], Workspace]] = {
    "u2pl": u2pl,
    "unimatch": unimatch,
    "unimatch-v2": unimatch_v2,
    "unimatch-remote-sensing": scenarios.remote_sensing,
    "unimatch-v2-remote-sensing": scenarios.remote_sensing_v2,
    "unimatch-medical": scenarios.medical,
    "prevmatch": scenarios.prevmatch,
    "allspark": scenarios.allspark,
    "semivl": scenarios.semivl,
    "corrmatch": scenarios.corrmatch,
    "ssl4mis": scenarios.ssl4mis,
    "ddfp": scenarios.ddfp,
    "bcp": scenarios.bcp,
}


def write_patched(
    framework: str, script: str, checkout: Path, folder: Path, fixes: Sequence[str] = ("short-epochs",)
) -> Path:
    """Write the patched script of a checkout to a folder, with those of the ``fixes`` that the framework has."""
    found = FRAMEWORKS[framework]
    source = (checkout / script).read_text()
    target = folder / script.replace(".py", "_brpg.py")
    target.write_text(found.patch(script, source, [fix for fix in found.fixes if fix in fixes]))
    return target


def patch_and_train(
    framework: str, checkout: Path, folder: Path, *, script: str | None = None, processes: int = 1, epochs: int = 3
) -> int:
    """Patch a script of a checkout and train with it; the checkout itself stays as it is.

    Args:
        framework: Name of the framework.
        checkout: Where its clone lies.
        folder: Workspace; the patched script is written there.
        script: Which script; None for the first.
        processes: Number of ranks.
        epochs: Epochs: one of warm-up, one of collecting, the rest of learning.

    Returns:
        Exit status of the training.
    """
    checkout, folder = checkout.resolve(), folder.resolve()
    script = script or next(iter(FRAMEWORKS[framework].scripts))
    folder.mkdir(parents=True, exist_ok=True)
    workspace = WORKSPACES[framework](checkout, folder, epochs, BRPG)
    patched = write_patched(framework, script, checkout, workspace.folder)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, "-m", "brpg_lib.examples.without_cuda", str(patched), *workspace.arguments]
    environment = os.environ | {"PYTHONPATH": extended_path(checkout), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=workspace.folder, env=environment).returncode
