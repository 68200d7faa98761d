"""What checkouts that derive from UniMatch or SSL4MIS need to train for a minute; see :mod:`.checkouts`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from brpg_lib.examples.made_up import (
    FILES,
    NUM_CLASSES,
    UNLABELED,
    Workspace,
    write_changes,
    write_images,
    write_lines,
    write_slices,
)

RESNET = "from model.backbone.resnet import resnet50 as network; network = network()"
RESNET101 = """from model.model.resnet import resnet101
network = resnet101(pretrained=False, fpn=True, replace_stride_with_dilation=[False, False, True])"""
DINO = "from model.backbone.dinov2 import DINOv2; network = DINOv2(model_name='small')"
DEEPLAB = {"backbone": "resnet50", "replace_stride_with_dilation": [False, False, True], "dilations": [1, 2, 3]}
CRITERION = {"name": "CELoss", "kwargs": {"ignore_index": 255}}
ARGUMENTS = ("--config=config.yaml", "--labeled-id-path=labeled.txt", "--unlabeled-id-path=unlabeled.txt")

SEMIVL = {
    "name": "made_up",
    "exp": 0,
    "dataset": "pascal",
    "split": "made_up",
    "nclass": NUM_CLASSES,
    "img_scale": None,
    "crop_size": 64,
    "labeled_photometric_distortion": False,
    "model": "mmseg.vlm-vlg-aspp-s2p4-sk04-ftap-mcvitb",
    "model_args": {},
    "text_embedding_variant": "single",
    "mcc_text": "single",
    "pl_text": "single",
    "clip_encoder": "mcvit16",
    "maskclip_consistency_lambda": [0.1, 0],
    "mcc_conf_thresh": 0.9,
    "mcc_loss_reduce": "mean_all",
    "use_fp": True,
    "pleval": True,
    "fp_rate": 0.5,
    "disable_dropout": True,
    "conf_mode": "pixelwise",
    "criterion": CRITERION,
    "criterion_u": "CELoss",
    "optimizer": {
        "type": "AdamW",
        "lr": 1e-4,
        "weight_decay": 0.01,
        "paramwise_cfg": {"custom_keys": {"backbone": {"lr_mult": 0.01}, "head": {"lr_mult": 10.0}}},
    },
    "warmup_iters": 0,
    "warmup_ratio": 1e-6,
    "iters": None,
    "eval_mode": "original",
    "nccl_p2p_disable": False,
}
"""What SemiVL's yamls hold."""

STEPS_OF_SSL4MIS = 13
"""Iterations of an epoch: pairs among the 27 labeled slices of two patients. For BCP the same."""


def write_weights(checkout: Path, path: Path, code: str) -> None:
    """Random weights of the ``network`` that the code makes in the checkout, unless the file is there."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    save = f"import torch; torch.manual_seed(0); {code}; torch.save(network.state_dict(), {str(path)!r})"
    subprocess.run([sys.executable, "-c", save], cwd=checkout, check=True)


def write_yaml(folder: Path, config: Mapping[str, Any]) -> None:
    """The file ``config.yaml``."""
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))


def remote_sensing(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any]) -> Workspace:
    """A workspace for the change detection of UniMatch."""
    network = DEEPLAB | {"model": "deeplabv3plus", "crop_size": 65}
    return _changes(checkout, folder, RESNET, network | _training(epochs, brpg))


def remote_sensing_v2(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any]) -> Workspace:
    """A workspace for the change detection of UniMatch V2."""
    network = {"backbone": "dinov2_small", "model": "dpt", "lock_backbone": False, "crop_size": 70}
    return _changes(checkout, folder, DINO, network | _training(epochs, brpg))


def _changes(checkout: Path, folder: Path, weights: str, config: dict[str, Any]) -> Workspace:
    names = write_changes(folder / "data")
    lists = {"labeled": "labeled.txt", "unlabeled": "unlabeled.txt", "test": "splits/levir/test.txt"}
    for split, path in lists.items():
        write_lines(folder / path, names[split])
    write_yaml(folder, config | {"dataset": "levir", "nclass": 2, "lr_multi": 1.0})
    write_weights(checkout, folder / f"pretrained/{config['backbone']}.pth", weights)
    return Workspace(folder, [*ARGUMENTS, "--save-path=exp"], folder / "exp/latest.pth")


def medical(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any]) -> Workspace:
    """A workspace for the cardiac segmentation of UniMatch."""
    names = write_slices(folder / "data", labeled=4, unlabeled=8)
    for split in ("labeled", "unlabeled"):
        write_lines(folder / f"{split}.txt", [f"data/slices/{name}.h5" for name in names[split]])
    write_lines(folder / "splits/acdc/valtest.txt", [f"data/{name}.h5" for name in names["test"]])
    write_yaml(folder, _training(epochs, brpg) | {"dataset": "acdc", "nclass": 4, "crop_size": 64})
    return Workspace(folder, [*ARGUMENTS, "--save-path=exp"], folder / "exp/latest.pth")


def corrmatch(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any]) -> Workspace:
    """A workspace for CorrMatch, which starts from random weights if told to."""
    own = {"thresh_init": 0.85, "pretrain": False, "multi_grid": False}
    return _pascal(folder, "partitions", _training(epochs, brpg) | own)


def prevmatch(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any], amp: bool = True) -> Workspace:
    """A workspace for PrevMatch."""
    previous = {"list_max_len": 2, "model_num": 2, "random_select": True, "conf_thresh": 0.1, "base_only_epoch": 0}
    write_weights(checkout, folder / "pretrained/resnet50.pth", RESNET)
    return _pascal(folder, "splits", _training(epochs, brpg) | {"amp": amp, "prev": previous, "save_map": False})


def allspark(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any]) -> Workspace:
    """A workspace for AllSpark: its smallest network with random weights, whose memory is used after an epoch."""
    widths = [64, 128, 320, 512]
    decoder = {
        "num_heads": 2,
        "num_class": NUM_CLASSES,
        "in_planes": widths,
        "image_size": 65,
        "warmup_epoch": 1,
        "embedding_dim": 64,
    }
    parts = {
        "backbone": {"type": "model.backbone.mit.mit_b2", "kwargs": {"embed_dims": widths, "pretrained": False}},
        "decoder": {"type": "model.semseg.allspark.SemiDecoder", "kwargs": decoder},
    }
    return _pascal(folder, "splits", _training(epochs, brpg) | {"model": parts, "criterion_u": CRITERION})


def semivl(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any]) -> Workspace:
    """A workspace for SemiVL: its network in an eighth of the width, and random weights instead of CLIP's."""
    for file in (checkout / "configs").rglob("models/*mcvit*.py"):
        target = folder / file.relative_to(checkout)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text().replace("768", "96"))
    draws = torch.Generator().manual_seed(0)
    texts = folder / "configs/_base_/datasets/text_embedding/voc12_wbg_single.npy"
    weights = folder / "pretrained/clip2mmseg_ViT16_clip_backbone.pth"
    for file in (texts, weights):
        file.parent.mkdir(parents=True, exist_ok=True)
    np.save(texts, F.normalize(torch.randn(NUM_CLASSES, 512, generator=draws)).numpy())
    torch.save({"proj.weight": torch.randn(512, 96, generator=draws) / 10}, weights)
    names = write_images(folder / "data")
    lists = {"labeled": "made_up/labeled.txt", "unlabeled": "made_up/unlabeled.txt", "test": "val.txt"}
    for split, path in lists.items():
        write_lines(folder / "splits/pascal" / path, [" ".join(FILES).format(name) for name in names[split]])
    write_yaml(folder, _training(epochs, brpg) | SEMIVL)
    return Workspace(folder, ["--config=config.yaml"], folder / "exp/best.pth")


def _pascal(folder: Path, splits: str, config: dict[str, Any]) -> Workspace:
    names = write_images(folder / "data")
    lists = {"labeled": "labeled.txt", "unlabeled": "unlabeled.txt", "test": f"{splits}/pascal/val.txt"}
    for split, path in lists.items():
        write_lines(folder / path, [" ".join(FILES).format(name) for name in names[split]])
    data = {"dataset": "pascal", "nclass": NUM_CLASSES, "crop_size": 65, "lr_multi": 10.0, "criterion": CRITERION}
    write_yaml(folder, config | DEEPLAB | data)
    return Workspace(folder, [*ARGUMENTS, "--save-path=exp"], folder / "exp/latest.pth")


def ddfp(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any]) -> Workspace:
    """A workspace for DDFP; its script for Cityscapes counts on that data set's 19 classes, the other on 21."""
    names = write_images(folder / "VOC")
    for split, path in {"labeled": "labeled.txt", "unlabeled": "unlabeled.txt", "test": "val.txt"}.items():
        write_lines(folder / "splits/pascal" / path, names[split])
    write_weights(checkout, folder / "resnet101.pth", RESNET101)
    train = {"data_root": "VOC", "data_list": "splits/pascal/labeled.txt"}
    dataset = {
        "type": "pascal_semi",
        "train": train,
        "val": train | {"data_list": "splits/pascal/val.txt"},
        "train_crop_size": 65,
        "batch_size": 2,
        "n_sup": 10582 - UNLABELED,  # DDFP draws the rest of PASCAL's 10582 images per epoch
        "workers": 0,
        "ignore_label": 255,
        "num_cls": 21,
    }
    trainer = {
        "epochs": epochs,
        "eval_on": True,
        "optimizer": {"type": "SGD", "kwargs": {"lr": 0.001, "momentum": 0.9, "weight_decay": 0.0001}},
        "lr_scheduler": {"mode": "poly", "kwargs": {"power": 0.9}},
        "sup_only_epoch": 1,
        "nf_start_epoch": 1,
        "thresh": 0.1,
    }
    flow = {"n_components": 21, "lr": 0.001, "n_blocks": 2, "clamping": 2.0, "noise": 0.05, "grad_clip": 50}
    config = {
        "dataset": dataset,
        "trainer": trainer,
        "saver": {"snapshot_dir": "checkpoints", "pretrain": "", "auto_resume": True},
        "criterion": {"type": "CELoss", "kwargs": {"use_weight": False}},
        "net": {"num_classes": 21, "sync_bn": True, "ema_decay": 0.99},
        "flow": flow | {"layer_dims": 32, "input_dims": 256},
        "adv": {"eps": 4.0, "eps_rand_init": False, "zero_init": True, "tiny_rand_init": False},
        "brpg": brpg,
    }
    write_yaml(folder, config)
    return Workspace(folder, ["--config=config.yaml", "--seed=0"], folder / "checkpoints/ckpt.pth")


def _training(epochs: int, brpg: dict[str, Any]) -> dict[str, Any]:
    """What the yamls of UniMatch and its descendants share."""
    return {"data_root": "data", "epochs": epochs, "batch_size": 2, "lr": 1e-3, "conf_thresh": 0.95, "brpg": brpg}


def ssl4mis(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any]) -> Workspace:
    """A workspace for SSL4MIS; its scripts count iterations, and start in a folder ``code``."""
    code, arguments = _patients(folder, epochs, brpg)
    if (checkout / "configs").is_dir():
        shutil.copytree(checkout / "configs", code / "configs", dirs_exist_ok=True)
    arguments += ["--labeled_num=2", "--labeled_bs=2", "--batch_size=4"]
    return Workspace(code, arguments, folder / "model/made_up_2_labeled/unet/unet_best_model.pth")


def bcp(checkout: Path, folder: Path, epochs: int, brpg: dict[str, Any]) -> Workspace:
    """A workspace for BCP; its script copies itself, out of the folder ``code`` that it starts in."""
    code, arguments = _patients(folder, epochs, brpg)
    shutil.copy(checkout / "ACDC_BCP_train.py", code)
    arguments += ["--labelnum=2", "--labeled_bs=4", "--batch_size=8", "--pre_iterations=20"]
    return Workspace(code, arguments, code / "model/BCP/ACDC_made_up_2_labeled/self_train/unet_best_model.pth")


def _patients(folder: Path, epochs: int, brpg: dict[str, Any]) -> tuple[Path, list[str]]:
    """Slices of patients, and the folder and arguments of a script that counts iterations."""
    data, code = folder / "data/Prostate", folder / "code"
    names = write_slices(data, labeled=27, unlabeled=8)  # as many as the scripts expect of two patients
    write_lines(data / "train_slices.list", [*names["labeled"], *names["unlabeled"]])
    write_lines(data / "val.list", names["test"])
    code.mkdir(exist_ok=True)
    lengths = {"warmup": STEPS_OF_SSL4MIS / 1000, "collect": STEPS_OF_SSL4MIS / 1000}
    (code / "brpg.yaml").write_text(yaml.safe_dump({"brpg": lengths | brpg}))
    iterations = f"--max_iterations={STEPS_OF_SSL4MIS * epochs}"
    return code, ["--root_path=../data/Prostate", "--exp=made_up", iterations, "--brpg=brpg.yaml"]
