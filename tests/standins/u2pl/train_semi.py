"""A stand-in, written for tests: has the shape of U2PL's train_semi.py, and a tiny network."""

import argparse
import logging
import os.path as osp
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from tensorboardX import SummaryWriter

from u2pl.dataset.augmentation import generate_unsup_data
from u2pl.dataset.builder import get_loader
from u2pl.models.model_helper import ModelBuilder
from u2pl.utils.dist_helper import parallel, setup_distributed
from u2pl.utils.loss_helper import contrast, surest_pixels
from u2pl.utils.lr_helper import get_optimizer, get_scheduler
from u2pl.utils.utils import AverageMeter, count_overlaps, init_log, load_state, set_random_seed

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=str, default="config.yaml")
parser.add_argument("--local_rank", type=int, default=0)
parser.add_argument("--seed", type=int, default=0)


def main():
    global cfg, prototype
    args = parser.parse_args()
    cfg = yaml.safe_load(Path(args.config).read_text())
    logger = init_log("global", logging.INFO)
    rank = setup_distributed()
    folder = Path(args.config).parent
    tb_logger = SummaryWriter(str(folder / "log" / time.strftime("%H%M%S"))) if rank == 0 else None
    set_random_seed(args.seed)
    Path(cfg["saver"]["snapshot_dir"]).mkdir(exist_ok=True)

    cfg_trainer, cfg_optim = cfg["trainer"], cfg["trainer"]["optimizer"]
    model = ModelBuilder(cfg["net"])
    rate = cfg_optim["kwargs"]["lr"]
    params_list = [
        {"params": model.encoder.parameters(), "lr": rate},
        {"params": model.decoder.parameters(), "lr": 10 * rate},
    ]
    optimizer = get_optimizer(params_list, cfg_optim)
    model, model_teacher = parallel(model), parallel(ModelBuilder(cfg["net"]))
    model_teacher.requires_grad_(False)
    train_loader_sup, train_loader_unsup, val_loader = get_loader(cfg["dataset"], args.seed)

    best_prec = 0
    last_epoch = 0
    lastest_model = str(folder / cfg["saver"]["snapshot_dir"] / "ckpt.pth")
    if cfg["saver"]["auto_resume"] and osp.exists(lastest_model):
        best_prec, last_epoch = load_state(lastest_model, model, optimizer=optimizer, key="model_state")
        load_state(lastest_model, model_teacher, optimizer=optimizer, key="teacher_state")

    # has the groups of the optimizer that steps, unless that one was resumed
    optimizer_start = get_optimizer(params_list, cfg_optim)
    lr_scheduler = get_scheduler(cfg_trainer, len(train_loader_sup), optimizer_start, start_epoch=last_epoch)
    memobank = [torch.zeros(0, 256) for _ in range(cfg["net"]["num_classes"])]
    prototype = torch.zeros(len(memobank), 256)

    for epoch in range(last_epoch, cfg_trainer["epochs"]):
        loaders = train_loader_sup, train_loader_unsup
        train(model, model_teacher, optimizer, lr_scheduler, *loaders, epoch, tb_logger, logger, memobank)
        prec = validate(model_teacher if epoch else model, val_loader)
        if rank == 0:
            tb_logger.add_scalar("mIoU val", prec, epoch)
            state = {"epoch": epoch + 1, "optimizer_state": optimizer.state_dict(), "best_miou": best_prec}
            state |= {"model_state": model.state_dict(), "teacher_state": model_teacher.state_dict()}
            if prec > best_prec:
                best_prec = prec
                torch.save(state, osp.join(cfg["saver"]["snapshot_dir"], "ckpt_best.pth"))

            torch.save(state, osp.join(cfg["saver"]["snapshot_dir"], "ckpt.pth"))
    if rank == 0:
        tb_logger.close()


def train(
    model,
    model_teacher,
    optimizer,
    lr_scheduler,
    loader_l,
    loader_u,
    epoch,
    tb_logger,
    logger,
    memobank,
):
    global prototype
    model.train()
    for loader in (loader_l, loader_u):
        loader.sampler.set_epoch(epoch)
    loader_l_iter, loader_u_iter = iter(loader_l), iter(loader_u)
    sup_losses, con_losses = AverageMeter(), AverageMeter()
    pairs = list(zip(model_teacher.parameters(), model.parameters()))

    for step in range(len(loader_l)):
        i_iter = epoch * len(loader_l) + step
        lr_scheduler.step()
        image_l, label_l = (x.cuda() for x in loader_l_iter.next())
        image_u = loader_u_iter.next()[0].cuda()
        size = label_l.shape[1:]

        if epoch < cfg["trainer"].get("sup_only_epoch", 1):
            outs = model(image_l)
            sup_loss = F.cross_entropy(resized(outs["pred"], size), label_l, ignore_index=255)
            unsup_loss = contra_loss = 0 * outs["rep"].sum()
            model_teacher.train()(image_l)
        else:
            if epoch == 1:  # from here on they share storage, until the teacher moves
                for theirs, ours in pairs:
                    theirs.data = ours.data
            model_teacher.eval()
            pred_u_teacher = model_teacher(image_u)["pred"]
            logits_u_aug, label_u_aug = resized(pred_u_teacher, size).softmax(dim=1).max(dim=1)
            image_u_aug = image_u
            if np.random.rand() < 0.5:
                image_u_aug, label_u_aug, logits_u_aug = generate_unsup_data(image_u, label_u_aug, logits_u_aug)

            image_all = torch.cat((image_l, image_u_aug))
            outs = model(image_all)
            logits_l, logits_u = resized(outs["pred"], size).split(len(image_l))
            with torch.no_grad():
                outs_teacher = model_teacher.train()(image_all)
            sup_loss = F.cross_entropy(logits_l, label_l, ignore_index=255)
            kept = surest_pixels(label_u_aug, resized(outs_teacher["pred"][len(image_l) :], size))
            unsup_loss = F.cross_entropy(logits_u, kept, ignore_index=255)
            contra_loss = 0 * outs["rep"].sum()
            if cfg["trainer"].get("contrastive", False):
                labels = torch.cat((label_l, label_u_aug))
                prototype, contra_loss = contrast(outs["rep"], labels, outs_teacher["rep"], memobank, prototype)

        loss = sup_loss + unsup_loss + contra_loss

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        if epoch >= 1:
            kept_share = min(1 - 1 / (i_iter - len(loader_l) + 1), cfg["net"]["ema_decay"])
            for theirs, ours in pairs:
                theirs.data = kept_share * theirs.data + (1 - kept_share) * ours.data
        sup_losses.update(sup_loss)
        con_losses.update(contra_loss)
        if i_iter % 10 == 0 and dist.get_rank() == 0:
            logger.info(f"iteration {i_iter}: loss {loss.item():.3f}, rate {lr_scheduler.get_lr()}")
            tb_logger.add_scalar("Sup Loss", sup_losses.val, i_iter)
            tb_logger.add_scalar("Con Loss", con_losses.val, i_iter)


def validate(model, loader):
    model.eval()
    with torch.no_grad():
        pairs = [
            (resized(model(image.cuda())["pred"], label.shape[1:]).argmax(dim=1), label) for image, label in loader
        ]
    intersection, union = count_overlaps(pairs, cfg["net"]["num_classes"])
    return np.mean(intersection / np.maximum(union, 1))


def resized(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


if __name__ == "__main__":
    main()
