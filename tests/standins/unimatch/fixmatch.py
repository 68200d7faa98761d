"""A stand-in, written for tests: has the shape of UniMatch's fixmatch.py, and a tiny network."""

import argparse
import logging
import os
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from dataset.semi import loaders
from model.semseg.deeplabv3plus import DeepLabV3Plus
from supervised import evaluate
from util.classes import CLASSES
from util.dist_helper import parallel, setup_distributed
from util.utils import consistency, cutmix, init_log

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

    model = DeepLabV3Plus(cfg)
    rates = cfg["lr"], cfg["lr"] * cfg["lr_multi"]
    groups = [{"params": params, "lr": lr} for params, lr in zip(model.parts(), rates)]
    optimizer = torch.optim.SGD(groups, lr=rates[0], momentum=0.9, weight_decay=1e-4)
    model = parallel(model, find_unused_parameters=False)
    criterion = nn.CrossEntropyLoss(**cfg["criterion"]["kwargs"]).cuda()
    trainloader_l, trainloader_u, valloader = loaders(cfg, args.labeled_id_path, args.unlabeled_id_path)

    kept = {"model": model, "optimizer": optimizer}
    best = 0.0
    epoch = -1
    if os.path.exists(os.path.join(args.save_path, "latest.pth")):
        checkpoint = torch.load(os.path.join(args.save_path, "latest.pth"))
        for name, owner in kept.items():
            owner.load_state_dict(checkpoint[name])
        epoch, best = checkpoint["epoch"], checkpoint["previous_best"]

    for epoch in range(epoch + 1, cfg["epochs"]):
        for loader in (trainloader_l, trainloader_u):
            loader.sampler.set_epoch(epoch)
        for i, ((img_x, mask_x), views, others) in enumerate(zip(trainloader_l, trainloader_u, trainloader_u)):
            img_x, mask_x = img_x.cuda(), mask_x.cuda()
            img_u_w, strong, _, ignore_mask, box, _ = (view.cuda() for view in views)
            weak_mix, strong_mix, _, ignore_mix, _, _ = (view.cuda() for view in others)

            with torch.no_grad():
                model.eval()
                conf_mix, mask_mix = model(weak_mix).softmax(dim=1).max(dim=1)

            model.train()
            num_lb = len(img_x)
            logits = model(torch.cat((img_x, img_u_w)))
            img_u_s = cutmix(box, strong, strong_mix)
            strong_logits = model(img_u_s)
            conf_u_w, mask_u_w = logits[num_lb:].detach().softmax(dim=1).max(dim=1)
            mask_u_w_cutmixed = cutmix(box, mask_u_w, mask_mix)
            conf_u_w_cutmixed = cutmix(box, conf_u_w, conf_mix)
            ignore_mask_cutmixed = cutmix(box, ignore_mask, ignore_mix)
            targets = mask_u_w_cutmixed, conf_u_w_cutmixed, ignore_mask_cutmixed
            loss = criterion(logits[:num_lb], mask_x)
            loss = loss + consistency(strong_logits, *targets, cfg["conf_thresh"])

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            iters = epoch * len(trainloader_u) + i
            left = 1 - iters / (cfg["epochs"] * len(trainloader_u))
            for index, lr in enumerate(rates):
                optimizer.param_groups[index]["lr"] = left * lr
            mask_ratio = (conf_u_w > cfg["conf_thresh"]).float().mean()
            if rank == 0:
                writer.add_scalar("train/loss", loss.item(), iters)
                writer.add_scalar("train/mask_ratio", mask_ratio, iters)
                if i % (len(trainloader_u) // 8) == 0:
                    logger.info(f"iteration {iters}: loss {loss.item():.3f}")

        mIoU, iou_class = evaluate(model, valloader, cfg)
        improved, best = mIoU > best, max(mIoU, best)
        if rank == 0:
            writer.add_scalar("eval/mIoU", mIoU, epoch)
            for name, iou in zip(CLASSES[cfg["dataset"]], iou_class):
                writer.add_scalar(f"eval/{name}_IoU", iou, epoch)
            checkpoint = {name: owner.state_dict() for name, owner in kept.items()}
            checkpoint |= {"epoch": epoch, "previous_best": best}
            torch.save(checkpoint, os.path.join(args.save_path, "latest.pth"))
            if improved:
                torch.save(checkpoint, os.path.join(args.save_path, "best.pth"))
    if rank == 0:
        writer.close()


if __name__ == "__main__":
    main()
