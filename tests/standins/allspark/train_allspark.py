"""A stand-in, written for tests: has the shape of AllSpark's train_allspark.py, and a tiny network."""

import argparse
import logging
import os
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from dataset.semi import loaders
from model.model_helper import ModelBuilder
from train_baseline_sup import evaluate
from util.classes import CLASSES
from util.dist_helper import parallel, setup_distributed
from util.utils import init_log

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path, required=True)
parser.add_argument("--labeled-id-path", required=True)
parser.add_argument("--unlabeled-id-path", required=True)
parser.add_argument("--save-path", required=True)
parser.add_argument("--local_rank", default=0, type=int)


def main():
    args = parser.parse_args()
    cfg = yaml.safe_load(args.config.read_text())
    logger = init_log("global", logging.INFO)
    rank = setup_distributed()
    writer = SummaryWriter(args.save_path) if rank == 0 else None

    model = ModelBuilder(cfg["model"])
    rates = cfg["lr"], cfg["lr"] * cfg["lr_multi"]
    parts = model.backbone.parameters(), model.decoder.parameters()
    groups = [{"params": params, "lr": lr} for params, lr in zip(parts, rates)]
    optimizer = torch.optim.SGD(groups, lr=rates[0], momentum=0.9, weight_decay=1e-4)
    model = parallel(model)
    criterion_l = nn.CrossEntropyLoss(**cfg["criterion"]["kwargs"]).cuda()
    criterion_u = nn.CrossEntropyLoss(**cfg["criterion_u"]["kwargs"]).cuda()
    trainloader_l, trainloader_u, valloader = loaders(cfg, args.labeled_id_path, args.unlabeled_id_path)

    kept = {"model": model, "optimizer": optimizer}
    previous_best = 0.0
    best_epoch = 0
    epoch = -1
    if os.path.exists(os.path.join(args.save_path, "latest.pth")):
        checkpoint = torch.load(os.path.join(args.save_path, "latest.pth"))
        for name, owner in kept.items():
            owner.load_state_dict(checkpoint[name])
        epoch, best_epoch, previous_best = (checkpoint[name] for name in ("epoch", "best_epoch", "previous_best"))

    for epoch in range(epoch + 1, cfg["epochs"]):
        for loader in (trainloader_l, trainloader_u):
            loader.sampler.set_epoch(epoch)
        model.module.decoder.set_SMem_status(epoch=epoch, isVal=False)
        for i, ((img_x, mask_x), img_u_s) in enumerate(zip(trainloader_l, trainloader_u)):
            img_x, mask_x, img_u_s = img_x.cuda(), mask_x.cuda(), img_u_s.cuda()

            with torch.no_grad():
                model.eval()
                pred_u_pseudo = model(img_u_s).detach()
                model.module.decoder.set_pseudo_prob_map(pred_u_pseudo)
                pseudo_label = pred_u_pseudo.argmax(dim=1)

            model.train()
            num_lb, num_ulb = img_x.shape[0], img_u_s.shape[0]
            pred_x, pred_u = model(torch.cat((img_x, img_u_s))).split([num_lb, num_ulb])
            loss_x = criterion_l(pred_x, mask_x)
            loss_u = criterion_u(pred_u, pseudo_label)
            loss = (loss_x + loss_u) / 2.0

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            iters = epoch * len(trainloader_u) + i
            left = 1 - iters / (cfg["epochs"] * len(trainloader_u))
            for index, lr in enumerate(rates):
                optimizer.param_groups[index]["lr"] = left * lr
            if rank == 0:
                writer.add_scalar("train/loss_all", loss.item(), iters)
                writer.add_scalar("train/loss_u", loss_u.item(), iters)
                if i % (len(trainloader_u) // 8) == 0:
                    logger.info(f"iteration {iters}: loss {loss.item():.3f}")

        model.module.decoder.set_SMem_status(epoch=epoch, isVal=True)
        mIoU, iou_class = evaluate(model, valloader, "original", cfg)
        is_best = mIoU > previous_best
        previous_best = max(mIoU, previous_best)
        if is_best:
            best_epoch = epoch
        if rank == 0:
            writer.add_scalar("eval/mIoU", mIoU, epoch)
            for name, iou in zip(CLASSES[cfg["dataset"]], iou_class):
                writer.add_scalar(f"eval/{name}_IoU", iou, epoch)
            checkpoint = {name: owner.state_dict() for name, owner in kept.items()}
            checkpoint |= {"epoch": epoch, "best_epoch": best_epoch, "previous_best": previous_best}
            torch.save(checkpoint, os.path.join(args.save_path, "latest.pth"))
            if is_best:
                torch.save(checkpoint, os.path.join(args.save_path, "best.pth"))
    if rank == 0:
        writer.close()


if __name__ == "__main__":
    main()
