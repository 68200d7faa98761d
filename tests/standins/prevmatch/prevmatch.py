"""A stand-in, written for tests: has the shape of PrevMatch's prevmatch.py, and a tiny network."""

import argparse
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from dataset.semi import loaders
from evaluate import evaluate
from model.semseg.deeplabv3plus import DeepLabV3Plus
from prev_utils import get_previous_logits, update_previous_list
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
    rank, ddp, amp = setup_distributed(), int(os.environ["WORLD_SIZE"]) > 1, cfg["amp"]
    writer = SummaryWriter(args.save_path) if rank == 0 else None

    model = DeepLabV3Plus(cfg)
    rates = cfg["lr"], cfg["lr"] * cfg["lr_multi"]
    groups = [{"params": params, "lr": lr} for params, lr in zip(model.parts(), rates)]
    optimizer = torch.optim.SGD(groups, lr=rates[0], momentum=0.9, weight_decay=1e-4)
    model = parallel(model, find_unused_parameters=False) if ddp else model.cuda()
    criterion = nn.CrossEntropyLoss(**cfg["criterion"]["kwargs"]).cuda()
    criterion_u = nn.CrossEntropyLoss(reduction="none").cuda()
    trainloader_l, trainloader_u, valloader = loaders(cfg, args.labeled_id_path, args.unlabeled_id_path)

    kept = {"model": model, "optimizer": optimizer}
    best, is_best, prev_model_list = 0.0, False, []
    epoch = -1
    scaler = torch.cuda.amp.GradScaler()

    for epoch in range(epoch + 1, cfg["epochs"]):
        if is_best:
            update_previous_list(prev_model_list, model, cfg["prev"]["list_max_len"])
        for loader in (trainloader_l, trainloader_u):
            loader.sampler.set_epoch(epoch)
        for i, ((img_x, mask_x), views, others) in enumerate(zip(trainloader_l, trainloader_u, trainloader_u)):
            img_x, mask_x = img_x.cuda(), mask_x.cuda()
            img_u_w, strong1, strong2, ignore_mask, box1, box2 = (view.cuda() for view in views)
            img_u_w_mix, strong1_mix, strong2_mix, ignore_mix, _, _ = (view.cuda() for view in others)

            img_u_s1, img_u_s2 = cutmix(box1, strong1, strong1_mix), cutmix(box2, strong2, strong2_mix)

            with torch.cuda.amp.autocast(enabled=amp):
                model.eval()
                if amp:
                    pred_u_w_mix = model(img_u_w_mix).detach()
                    conf_u_w_mix, mask_u_w_mix = pred_u_w_mix.softmax(dim=1).max(dim=1)
                else:
                    with torch.no_grad():
                        pred_u_w_mix = model(img_u_w_mix).detach()
                        conf_u_w_mix, mask_u_w_mix = pred_u_w_mix.softmax(dim=1).max(dim=1)
                if len(prev_model_list) != 0:
                    prev_logits = get_previous_logits(prev_model_list, torch.cat((img_u_w, img_u_w_mix)))
                    (_, _), (mask_u_w_prev, mask_u_w_mix_prev) = (
                        x.chunk(2) for x in prev_logits.softmax(dim=1).max(dim=1)
                    )
                model.train()

                num_lb, num_ulb = len(img_x), len(img_u_w)
                preds, preds_fp = model(torch.cat((img_x, img_u_w)), True)
                pred_x, pred_u_w = preds.split([num_lb, num_ulb])
                pred_u_s1, pred_u_s2 = model(torch.cat((img_u_s1, img_u_s2))).chunk(2)
                conf_u_w, mask_u_w = pred_u_w.detach().softmax(dim=1).max(dim=1)

                mask_u_w_cutmixed1, mask_u_w_cutmixed2 = (cutmix(box, mask_u_w, mask_u_w_mix) for box in (box1, box2))
                conf_u_w_cutmixed1, conf_u_w_cutmixed2 = (cutmix(box, conf_u_w, conf_u_w_mix) for box in (box1, box2))
                ignore_mask_cutmixed1, ignore_mask_cutmixed2 = (
                    cutmix(box, ignore_mask, ignore_mix) for box in (box1, box2)
                )
                if len(prev_model_list) != 0:
                    mask_u_w_cutmixed1_prev = cutmix(box1, mask_u_w_prev, mask_u_w_mix_prev)

                terms = (
                    (pred_u_s1, mask_u_w_cutmixed1, conf_u_w_cutmixed1, ignore_mask_cutmixed1),
                    (pred_u_s2, mask_u_w_cutmixed2, conf_u_w_cutmixed2, ignore_mask_cutmixed2),
                    (preds_fp[num_lb:], mask_u_w, conf_u_w, ignore_mask),
                )
                loss_standard = criterion(pred_x, mask_x) + sum(consistency(*t, cfg["conf_thresh"]) for t in terms)
                if len(prev_model_list) != 0:
                    loss_u_s1_prev = criterion_u(pred_u_s1, mask_u_w_cutmixed1_prev)
                    total_loss = loss_standard + loss_u_s1_prev.mean()
                else:
                    total_loss = loss_standard

            optimizer.zero_grad()
            if amp:
                loss = scaler.scale(total_loss)
                loss.backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                total_loss.backward()
                optimizer.step()

            iters = epoch * len(trainloader_u) + i
            left = 1 - iters / (cfg["epochs"] * len(trainloader_u))
            for index, lr in enumerate(rates):
                optimizer.param_groups[index]["lr"] = left * lr
            mask_ratio = (conf_u_w > cfg["conf_thresh"]).float().mean()
            log_avg = SimpleNamespace(avgs={"Total loss": total_loss.item(), "Mask ratio": mask_ratio})
            if rank == 0:
                for k, v in log_avg.avgs.items():
                    writer.add_scalar("train/" + k, v, iters)
            if i % (len(trainloader_u) // 8) == 0 and rank == 0:
                logger.info(f"iteration {iters}: {log_avg.avgs}")

        mIoU, iou_class = evaluate(model, valloader, cfg)
        is_best, best = mIoU > best, max(mIoU, best)
        if rank == 0:
            writer.add_scalar("eval/mIoU", mIoU, epoch)
            for name, iou in zip(CLASSES[cfg["dataset"]], iou_class):
                writer.add_scalar(f"eval/{name}_IoU", iou, epoch)
            checkpoint = {name: owner.state_dict() for name, owner in kept.items()}
            checkpoint |= {"epoch": epoch, "previous_best": best}
            torch.save(checkpoint, os.path.join(args.save_path, "latest.pth"))
            if is_best:
                torch.save(checkpoint, os.path.join(args.save_path, "best.pth"))
    if rank == 0:
        writer.close()


if __name__ == "__main__":
    main()
