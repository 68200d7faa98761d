"""A stand-in, written for tests: has the shape of SemiVL's semivl.py, which has no main(), and a tiny network."""

import argparse
import logging
import os
import random
import uuid
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from datasets.classes import CLASSES
from model.builder import build_model, groups_of_one
from third_party.unimatch.dataset.semi import loaders
from third_party.unimatch.supervised import evaluate
from third_party.unimatch.util.dist_helper import parallel, setup_distributed
from third_party.unimatch.util.utils import init_log
from utils.train_utils import DictAverageMeter, confidence_weighted_loss, cutmix_img_, cutmix_mask

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--local_rank", default=0, type=int)
    args = parser.parse_args()

    cfg = yaml.safe_load(args.config.read_text())
    labeled_id_path = f"splits/{cfg['dataset']}/{cfg['split']}/labeled.txt"
    unlabeled_id_path = f"splits/{cfg['dataset']}/{cfg['split']}/unlabeled.txt"
    logger = init_log("global", logging.INFO)
    rank = setup_distributed()
    if rank == 0:
        save_path = f"exp/exp-{cfg['exp']}/{cfg['name']}_{str(uuid.uuid4())[:5]}"
        os.makedirs(save_path)
        writer = SummaryWriter(save_path)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)

    model = build_model(cfg)
    optimizer = torch.optim.AdamW(groups_of_one(model, cfg["optimizer"]))
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    model = parallel(model, find_unused_parameters=True)
    criterion_l = nn.CrossEntropyLoss(**cfg["criterion"]["kwargs"]).cuda()
    criterion_u = nn.CrossEntropyLoss(reduction="none").cuda()
    criterion_mc = nn.CrossEntropyLoss(ignore_index=255).cuda()
    trainloader_l, trainloader_u, valloader = loaders(cfg, labeled_id_path, unlabeled_id_path)
    total_iters = len(trainloader_u) * cfg["epochs"]
    previous_best = 0.0
    epoch = -1

    for epoch in range(epoch + 1, cfg["epochs"]):
        log_avg = DictAverageMeter()
        for loader in (trainloader_l, trainloader_u):
            loader.sampler.set_epoch(epoch)
        for i, ((img_x, mask_x), views, others) in enumerate(zip(trainloader_l, trainloader_u, trainloader_u)):
            iters = epoch * len(trainloader_u) + i
            img_x, mask_x = img_x.cuda(), mask_x.cuda()
            img_w, img_s1, img_s2, ignore_mask, mix1, mix2 = (view.cuda() for view in views)
            img_w_other, img_s1_other, img_s2_other, ignore_mask_other, _, _ = (view.cuda() for view in others)
            cutmix_img_(img_s1, img_s1_other, mix1)
            cutmix_img_(img_s2, img_s2_other, mix2)

            with torch.no_grad():
                model.eval()
                pred_w_other = model(img_w_other).detach()
                conf_w_other, mask_w_other = pred_w_other.softmax(dim=1).max(dim=1)
                mclip = model.module.forward_maskclip(img_w, conf_tresh=cfg["mcc_conf_thresh"])

            model.train()
            preds, preds_fp = model(torch.cat((img_x, img_w)), need_fp=True)
            pred_x, pred_w = preds.chunk(2)
            _, pred_w_fp = preds_fp.chunk(2)
            pred_s1, pred_s2 = model(torch.cat((img_s1, img_s2))).chunk(2)
            pred_w = pred_w.detach()
            conf_w, mask_w = pred_w.softmax(dim=1).max(dim=1)

            mask_w_mixed1, mask_w_mixed2 = (cutmix_mask(mask_w, mask_w_other, mix) for mix in (mix1, mix2))
            conf_w_mixed1, conf_w_mixed2 = (cutmix_mask(conf_w, conf_w_other, mix) for mix in (mix1, mix2))
            ignore_mask_mixed1, ignore_mask_mixed2 = (
                cutmix_mask(ignore_mask, ignore_mask_other, mix) for mix in (mix1, mix2)
            )
            loss_x = criterion_l(pred_x, mask_x)
            loss_s1 = criterion_u(pred_s1, mask_w_mixed1)
            loss_s1 = confidence_weighted_loss(loss_s1, conf_w_mixed1, ignore_mask_mixed1, cfg)
            loss_s2 = criterion_u(pred_s2, mask_w_mixed2)
            loss_s2 = confidence_weighted_loss(loss_s2, conf_w_mixed2, ignore_mask_mixed2, cfg)
            loss_fp = confidence_weighted_loss(criterion_u(pred_w_fp, mask_w), conf_w, ignore_mask, cfg)
            loss = (loss_x + loss_s1 * 0.25 + loss_s2 * 0.25 + loss_fp * 0.5) / 2.0
            if (mclip != 255).any():
                loss = loss + criterion_mc(pred_w_fp, mclip) * cfg["maskclip_consistency_lambda"][0]

            torch.distributed.barrier()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (1 - iters / total_iters) ** 0.9
            log_avg.update({"train/loss_all": loss, "train/loss_x": loss_x, "train/loss_fp": loss_fp})
            if i % 100 == 0 and rank == 0:
                for k, v in log_avg.avgs.items():
                    writer.add_scalar(k, v, iters)
                log_avg.reset()

        mIoU, iou_class = evaluate(model, valloader, cfg["eval_mode"], cfg)
        is_best = mIoU > previous_best
        previous_best = max(mIoU, previous_best)
        if rank == 0:
            writer.add_scalar("eval/mIoU", mIoU, epoch)
            for name, iou in zip(CLASSES[cfg["dataset"]], iou_class):
                writer.add_scalar(f"eval/{name}_IoU", iou, epoch)
            checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            if is_best:
                torch.save(checkpoint, os.path.join(save_path, "best.pth"))
    if rank == 0:
        writer.close()
