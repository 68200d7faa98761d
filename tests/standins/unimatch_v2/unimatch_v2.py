"""A stand-in, written for tests: has the shape of UniMatch V2's unimatch_v2.py, and a tiny network."""

import argparse
import copy
import logging
import os
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from dataset.semi import loaders
from model.semseg.dpt import DPT
from supervised import evaluate
from util.classes import CLASSES
from util.dist_helper import parallel, setup_distributed
from util.utils import consistency, cutmix, init_log

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path, required=True)
parser.add_argument("--labeled-id-path", required=True)
parser.add_argument("--unlabeled-id-path", required=True)
parser.add_argument("--save-path", required=True)
parser.add_argument("--local_rank", "--local-rank", default=0, type=int)


def main():
    args = parser.parse_args()
    cfg = yaml.safe_load(args.config.read_text())
    logger = init_log("global", logging.INFO)
    rank = setup_distributed()
    writer = SummaryWriter(args.save_path) if rank == 0 else None

    model = DPT(cfg["backbone"].split("_")[1], cfg["nclass"])
    model.backbone.load_state_dict(torch.load(f"pretrained/{cfg['backbone']}.pth"))
    rates = cfg["lr"], cfg["lr"] * cfg["lr_multi"]
    groups = [{"params": params, "lr": lr} for params, lr in zip(model.parts(), rates)]
    optimizer = torch.optim.AdamW(groups, lr=rates[0])
    model = parallel(model, find_unused_parameters=True)
    model_ema = copy.deepcopy(model).eval().requires_grad_(False)
    criterion = nn.CrossEntropyLoss(**cfg["criterion"]["kwargs"]).cuda()
    trainloader_l, trainloader_u, valloader = loaders(cfg, args.labeled_id_path, args.unlabeled_id_path)

    kept = {"model": model, "model_ema": model_ema, "optimizer": optimizer}
    best, best_ema = 0.0, 0.0
    epoch = -1
    if os.path.exists(os.path.join(args.save_path, "latest.pth")):
        checkpoint = torch.load(os.path.join(args.save_path, "latest.pth"), map_location="cpu")
        for name, owner in kept.items():
            owner.load_state_dict(checkpoint[name])
        epoch, best, best_ema = (checkpoint[name] for name in ("epoch", "previous_best", "previous_best_ema"))

    for epoch in range(epoch + 1, cfg["epochs"]):
        for loader in (trainloader_l, trainloader_u):
            loader.sampler.set_epoch(epoch)
        model.train()
        for i, ((img_x, mask_x), views) in enumerate(zip(trainloader_l, trainloader_u)):
            img_x, mask_x = img_x.cuda(), mask_x.cuda()
            img_u_w, strong1, strong2, ignore_mask, box1, box2 = (view.cuda() for view in views)

            with torch.no_grad():
                conf_u_w, mask_u_w = model_ema(img_u_w).softmax(dim=1).max(dim=1)

            logits = model(img_x)
            img_u_s1 = cutmix(box1, strong1, strong1.flip(0))
            img_u_s2 = cutmix(box2, strong2, strong2.flip(0))
            logits1, logits2 = model(torch.cat((img_u_s1, img_u_s2)), comp_drop=True).chunk(2)

            mask_u_w_cutmixed1, mask_u_w_cutmixed2 = (cutmix(box, mask_u_w, mask_u_w.flip(0)) for box in (box1, box2))
            conf_u_w_cutmixed1, conf_u_w_cutmixed2 = (cutmix(box, conf_u_w, conf_u_w.flip(0)) for box in (box1, box2))
            ignore_mask_cutmixed1, ignore_mask_cutmixed2 = (
                cutmix(box, ignore_mask, ignore_mask.flip(0)) for box in (box1, box2)
            )
            terms = (
                (logits1, mask_u_w_cutmixed1, conf_u_w_cutmixed1, ignore_mask_cutmixed1),
                (logits2, mask_u_w_cutmixed2, conf_u_w_cutmixed2, ignore_mask_cutmixed2),
            )
            loss = criterion(logits, mask_x)
            loss = loss + sum(consistency(*term, cfg["conf_thresh"]) for term in terms)

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            iters = epoch * len(trainloader_u) + i
            left = 1 - iters / (cfg["epochs"] * len(trainloader_u))
            for index, lr in enumerate(rates):
                optimizer.param_groups[index]["lr"] = left * lr
            ema_ratio = min(iters / (iters + 1), 0.99)
            for param, param_ema in zip(model.parameters(), model_ema.parameters()):
                param_ema.lerp_(param.detach(), 1 - ema_ratio)
            for buffer, buffer_ema in zip(model.buffers(), model_ema.buffers()):
                buffer_ema.copy_(ema_ratio * buffer_ema + (1 - ema_ratio) * buffer)
            mask_ratio = (conf_u_w > cfg["conf_thresh"]).float().mean()
            if rank == 0:
                writer.add_scalar("train/loss", loss.item(), iters)
                writer.add_scalar("train/mask_ratio", mask_ratio, iters)
                if i % (len(trainloader_u) // 8) == 0:
                    logger.info(f"iteration {iters}: loss {loss.item():.3f}")

        mIoU, iou_class = evaluate(model, valloader, cfg)
        mIoU_ema, iou_class_ema = evaluate(model_ema, valloader, cfg)
        improved, best, best_ema = mIoU >= best, max(mIoU, best), max(mIoU_ema, best_ema)
        if rank == 0:
            writer.add_scalar("eval/mIoU", mIoU, epoch)
            writer.add_scalar("eval/mIoU_ema", mIoU_ema, epoch)
            for name, iou in zip(CLASSES[cfg["dataset"]], iou_class):
                writer.add_scalar(f"eval/{name}_IoU", iou, epoch)
            checkpoint = {name: owner.state_dict() for name, owner in kept.items()}
            checkpoint |= {"epoch": epoch, "previous_best": best, "previous_best_ema": best_ema}
            torch.save(checkpoint, os.path.join(args.save_path, "latest.pth"))
            if improved:
                torch.save(checkpoint, os.path.join(args.save_path, "best.pth"))
    if rank == 0:
        writer.close()


if __name__ == "__main__":
    main()
