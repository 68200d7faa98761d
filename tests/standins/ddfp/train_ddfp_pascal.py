"""A stand-in, written for tests: has the shape of DDFP's train_ddfp_pascal.py, and tiny networks."""

import argparse
import logging
import os
import os.path as osp
import random
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from tensorboardX import SummaryWriter

from dataset.builder import get_loader
from dataset.transform import generate_unsup_data
from model.model.model_helper import ModelBuilder
from utils.dist_helper import parallel, setup_distributed
from utils.lr_helper import get_optimizer, get_scheduler
from utils.utils import count_overlaps, init_log, load_state, mean_over_ranks, set_random_seed

from torch.cuda.amp import GradScaler, autocast

from model.flow.loss import FlowLoss, compute_unsupervised_loss
from model.flow.model import RNVP

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=str, default="config.yaml")
parser.add_argument("--local_rank", type=int, default=0)
parser.add_argument("--seed", type=int, default=0)


def to_status(module, status):
    if hasattr(module, "batch_type"):
        module.batch_type = status


to_clean_status, to_mix_status, to_warm_status = (
    partial(to_status, status=status) for status in ("clean", "mix", "warm_up")
)


def main():
    global args, cfg
    args = parser.parse_args()
    cfg = yaml.safe_load(Path(args.config).read_text())
    scaler, scaler_nf = GradScaler(), GradScaler()
    logger = init_log("global", logging.INFO)
    folder = osp.dirname(args.config)
    save_path = osp.join(folder, cfg["saver"]["snapshot_dir"])
    rank = setup_distributed()
    tb_logger = SummaryWriter(osp.join(folder, "log", time.strftime("%H%M%S"))) if rank == 0 else None
    set_random_seed(args.seed)
    os.makedirs(cfg["saver"]["snapshot_dir"], exist_ok=True)

    model = ModelBuilder(cfg["dataset"]["num_cls"])
    parts = model.encoder, model.decoder
    model_teacher = ModelBuilder()
    means = torch.randn(cfg["flow"]["n_components"], cfg["flow"]["input_dims"])
    nf_model = RNVP(cfg, means, learnable_mean=True)
    optimizer_nf = torch.optim.Adam(nf_model.parameters(), lr=cfg["flow"]["lr"])
    train_loader_sup, train_loader_unsup, val_loader = get_loader(cfg, seed=args.seed)

    cfg_trainer, cfg_optim = cfg["trainer"], cfg["trainer"]["optimizer"]
    rate = cfg_optim["kwargs"]["lr"]
    params_list = [{"params": part.parameters(), "lr": times * rate} for part, times in zip(parts, (1, 10))]
    optimizer = get_optimizer(params_list, cfg_optim)
    model, model_teacher, nf_model = parallel(model), parallel(model_teacher), parallel(nf_model)
    model_teacher.requires_grad_(False)

    best_prec = 0
    last_epoch = 0
    lastest_model = osp.join(save_path, "ckpt.pth")
    if cfg["saver"].get("auto_resume", False) and osp.exists(lastest_model):
        best_prec, last_epoch = load_state(lastest_model, model, optimizer=optimizer, key="model_state")
        load_state(lastest_model, nf_model, optimizer_nf=optimizer_nf, key="nf_model_state")

    # has the groups of the optimizer that steps, unless that one was resumed
    optimizer_start = get_optimizer(params_list, cfg_optim)
    lr_scheduler = get_scheduler(cfg_trainer, len(train_loader_sup), optimizer_start, start_epoch=last_epoch)
    loss_flow = FlowLoss(nf_model.module.means)

    for epoch in range(last_epoch, cfg_trainer["epochs"]):
        train(
            model,
            model_teacher,
            nf_model,
            optimizer,
            optimizer_nf,
            lr_scheduler,
            loss_flow,
            train_loader_sup,
            train_loader_unsup,
            epoch,
            tb_logger,
            logger,
            scaler,
            scaler_nf,
        )
        if cfg_trainer["eval_on"] and (epoch + 1) % 4 == 0:
            prec = prec_s = validate(model, val_loader)
            if epoch >= 1:
                prec_t = validate(model_teacher, val_loader)
                prec = max(prec_s, prec_t)
            if rank == 0:
                state = {"epoch": epoch + 1, "model_state": model.state_dict()}
                state |= {"teacher_state": model_teacher.state_dict(), "optimizer_state": optimizer.state_dict()}
                state |= {"nf_model_state": nf_model.state_dict(), "nf_optimizer_state": optimizer_nf.state_dict()}
                state["best_miou"] = best_prec
                if prec > best_prec:
                    best_prec = prec
                    torch.save(state, osp.join(cfg["saver"]["snapshot_dir"], "ckpt_best.pth"))
                torch.save(state, osp.join(cfg["saver"]["snapshot_dir"], "ckpt.pth"))
                tb_logger.add_scalar("mIoU val", prec_s, epoch)
                if epoch >= 1:
                    tb_logger.add_scalar("mIoU val teacher", prec_t, epoch)
    if rank == 0:
        tb_logger.close()


def train(
    model,
    model_teacher,
    nf_model,
    optimizer,
    optimizer_nf,
    lr_scheduler,
    loss_flow,
    loader_l,
    loader_u,
    epoch,
    tb_logger,
    logger,
    scaler,
    scaler_nf,
):
    ema_decay_origin = cfg["net"]["ema_decay"]
    mixing = epoch >= cfg["trainer"]["nf_start_epoch"] + 1
    model.train()
    model.apply(to_mix_status if mixing else to_warm_status)
    model_teacher.apply(to_clean_status)
    for loader in (loader_l, loader_u):
        loader.sampler.set_epoch(epoch)
    loader_l_iter, loader_u_iter = iter(loader_l), iter(loader_u)
    pairs = list(zip(model_teacher.parameters(), model.parameters()))
    rank = dist.get_rank()

    for step in range(len(loader_l)):
        i_iter = epoch * len(loader_l) + step
        lr_scheduler.step()
        image_l, label_l = loader_l_iter.next()
        image_l, label_l = image_l.cuda(), label_l.cuda()
        image_u, image_u_s, ignore_mask = loader_u_iter.next()
        image_u, image_u_s, ignore_mask = image_u.cuda(), image_u_s.cuda(), ignore_mask.cuda()
        h, w = label_l.shape[1:]
        dist.barrier()
        num_labeled = len(image_l)
        sldj = torch.tensor(0.1)

        if epoch < cfg["trainer"]["sup_only_epoch"]:
            with autocast():
                outs = model(image_l)
                pred = resized(outs["pred"], (h, w))
                sup_loss = F.cross_entropy(pred, label_l, ignore_index=255)
                unsup_loss = 0 * pred.sum()
                model_teacher.train()
                _ = model_teacher(image_l)

            loss = sup_loss + unsup_loss

            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            if epoch == cfg["trainer"]["sup_only_epoch"]:
                for theirs, ours in pairs:
                    theirs.data = ours.data

            image_bi = torch.cat((image_l, image_u))
            model_teacher.train()
            with torch.no_grad():
                outs_t = model_teacher(image_bi)
                pred_u_t = resized(outs_t["pred"][num_labeled:], (h, w))
                logits_u_t, label_u_t = torch.max(F.softmax(pred_u_t, dim=1), dim=1)
                label_u_t[(logits_u_t <= cfg["trainer"]["thresh"]) & (ignore_mask != 255)] = 255
                if random.uniform(0, 1) < 0.5:
                    image_u_aug, label_u_aug, ignore_mask_aug = generate_unsup_data(
                        image_u_s,
                        label_u_t.clone(),
                        ignore_mask.clone(),
                        mode="cutmix",
                    )
                else:
                    image_u_aug, label_u_aug, ignore_mask_aug = image_u_s, label_u_t.clone(), ignore_mask.clone()
            label_u_aug[ignore_mask_aug == 255] = 255
            image_tri = torch.cat((image_l, image_u_aug), dim=0)

            with autocast():
                if mixing:
                    out_tri_s = model(image_tri, nf_model, loss_flow, eps=cfg["adv"]["eps"], adv=True)
                    pred_l, pred_u, pred_pt = resized(out_tri_s["pred"], (h, w)).chunk(3)
                    sup_loss = F.cross_entropy(pred_l, label_l, ignore_index=255)
                    unsup_loss = compute_unsupervised_loss(pred_u, label_u_aug)
                    unsup_loss_pt = compute_unsupervised_loss(pred_pt, label_u_aug)
                    loss = sup_loss + 0.5 * unsup_loss + 0.5 * unsup_loss_pt
                else:
                    outs_bi_s = model(image_tri)
                    pred_l, pred_u = resized(outs_bi_s["pred"], (h, w)).chunk(2)
                    sup_loss = F.cross_entropy(pred_l, label_l, ignore_index=255)
                    unsup_loss = compute_unsupervised_loss(pred_u, label_u_aug)
                    loss = sup_loss + unsup_loss

            dist.barrier()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

            nf_model.train()
            with autocast():
                points = outs_t["fts"].movedim(1, 3).flatten(0, 2)
                points = points[torch.randperm(len(points))[:200]]
                z, log_jac_det = nf_model(points + cfg["flow"]["noise"] * torch.randn_like(points))
                nf_loss, sldj = loss_flow(z, log_jac_det)
            optimizer_nf.zero_grad()
            scaler_nf.scale(nf_loss).backward()
            scaler_nf.step(optimizer_nf)
            scaler_nf.update()
            nf_model.eval()

            with torch.no_grad():
                ema_decay = min(1 - 1 / (i_iter - len(loader_l) + 1), ema_decay_origin)
                for theirs, ours in pairs:
                    theirs.data.copy_(ema_decay * theirs.data + (1 - ema_decay) * ours.data)

        sup_loss, sldj_value = mean_over_ranks(sup_loss), mean_over_ranks(sldj)
        if i_iter % 10 == 0 and rank == 0:
            logger.info(f"iteration {i_iter}: {sup_loss.val:.3f}, rate {lr_scheduler.get_lr()}")
            tb_logger.add_scalar("Sup Loss", sup_loss.val, i_iter)
            tb_logger.add_scalar("sldj", sldj_value.val, i_iter)


def validate(model, loader):
    model.eval()
    model.apply(to_clean_status)
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
