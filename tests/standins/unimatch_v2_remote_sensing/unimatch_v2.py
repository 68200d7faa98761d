"""A stand-in, written for tests: has the shape of UniMatch V2's remote-sensing script, and a tiny network."""

import argparse
import copy
import logging
import os
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from torch.utils.tensorboard import SummaryWriter

from dataset.semicd import SemiCDDataset
from model.semseg.dpt import DPT
from supervised import evaluate
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

    model = DPT(cfg["backbone"].split("_")[1], cfg["nclass"])
    model.backbone.load_state_dict(torch.load(f"pretrained/{cfg['backbone']}.pth"))
    rates = cfg["lr"], cfg["lr"] * cfg["lr_multi"]
    groups = [{"params": params, "lr": lr} for params, lr in zip(model.parts(), rates)]
    optimizer = torch.optim.AdamW(groups, lr=rates[0])
    model = parallel(model, find_unused_parameters=True)
    model_ema = copy.deepcopy(model).eval().requires_grad_(False)
    criterion_l = nn.CrossEntropyLoss(ignore_index=255).cuda()

    def loader(mode, path, batch_size, nsample=None):
        dataset = SemiCDDataset(cfg["dataset"], cfg["data_root"], mode, cfg["crop_size"], path, nsample)
        options = {"batch_size": batch_size, "drop_last": mode != "val"}
        return DataLoader(dataset, sampler=DistributedSampler(dataset), **options)

    trainloader_u = loader("train_u", args.unlabeled_id_path, cfg["batch_size"])
    trainloader_l = loader("train_l", args.labeled_id_path, cfg["batch_size"], len(trainloader_u.dataset))
    valloader = loader("val", None, 1)

    kept = {"model": model, "model_ema": model_ema, "optimizer": optimizer}
    best = 0.0
    epoch = -1
    if os.path.exists(os.path.join(args.save_path, "latest.pth")):
        checkpoint = torch.load(os.path.join(args.save_path, "latest.pth"), map_location="cpu")
        for name, owner in kept.items():
            owner.load_state_dict(checkpoint[name])
        epoch, best = checkpoint["epoch"], checkpoint["previous_best"]

    for epoch in range(epoch + 1, cfg["epochs"]):
        for loader in (trainloader_l, trainloader_u):
            loader.sampler.set_epoch(epoch)
        for i, ((imgA_x, imgB_x, mask_x), views) in enumerate(zip(trainloader_l, trainloader_u)):
            imgA_x, imgB_x, mask_x = imgA_x.cuda(), imgB_x.cuda(), mask_x.cuda()
            imgA_u_w, imgB_u_w, *strong, ignore_mask, box1, box2 = (view.cuda() for view in views)

            with torch.no_grad():
                pred_u_w = model(imgA_u_w, imgB_u_w).detach()
                conf_u_w, mask_u_w = pred_u_w.softmax(dim=1).max(dim=1)
            mixed = [cutmix(box, own, own.flip(0)) for box, own in zip((box1, box1, box2, box2), strong)]
            imgA_u_s1, imgB_u_s1, imgA_u_s2, imgB_u_s2 = mixed

            model.train()
            pred_x = model(imgA_x, imgB_x)
            strong_preds = model(torch.cat((imgA_u_s1, imgA_u_s2)), torch.cat((imgB_u_s1, imgB_u_s2)), comp_drop=True)
            pred_u_s1, pred_u_s2 = strong_preds.chunk(2)

            mask_u_w_cutmixed1, mask_u_w_cutmixed2 = (cutmix(box, mask_u_w, mask_u_w.flip(0)) for box in (box1, box2))
            conf_u_w_cutmixed1, conf_u_w_cutmixed2 = (cutmix(box, conf_u_w, conf_u_w.flip(0)) for box in (box1, box2))
            ignore_mask_cutmixed1, ignore_mask_cutmixed2 = (
                cutmix(box, ignore_mask, ignore_mask.flip(0)) for box in (box1, box2)
            )
            terms = (
                (pred_u_s1, mask_u_w_cutmixed1, conf_u_w_cutmixed1, ignore_mask_cutmixed1),
                (pred_u_s2, mask_u_w_cutmixed2, conf_u_w_cutmixed2, ignore_mask_cutmixed2),
            )
            loss = criterion_l(pred_x, mask_x)
            loss = loss + sum(consistency(*term, cfg["conf_thresh"]) for term in terms)

            torch.distributed.barrier()

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            iters = epoch * len(trainloader_u) + i
            lr = cfg["lr"] * (1 - iters / (cfg["epochs"] * len(trainloader_u))) ** 0.9
            optimizer.param_groups[0]["lr"] = lr
            optimizer.param_groups[1]["lr"] = lr * cfg["lr_multi"]
            ema_ratio = min(1 - 1 / (iters + 1), 0.996)
            for param, param_ema in zip(model.parameters(), model_ema.parameters()):
                param_ema.copy_(param_ema * ema_ratio + param.detach() * (1 - ema_ratio))
            for buffer, buffer_ema in zip(model.buffers(), model_ema.buffers()):
                buffer_ema.copy_(buffer_ema * ema_ratio + buffer.detach() * (1 - ema_ratio))
            mask_ratio = (conf_u_w > cfg["conf_thresh"]).float().mean()
            if rank == 0:
                writer.add_scalar("train/loss_all", loss.item(), iters)
                writer.add_scalar("train/mask_ratio", mask_ratio, iters)
            if i % (len(trainloader_u) // 8) == 0 and rank == 0:
                logger.info(f"iteration {iters}: loss {loss.item():.3f}")

        iou_class, overall_acc = evaluate(model, valloader, cfg)
        iou_class_ema, overall_acc_ema = evaluate(model_ema, valloader, cfg)
        if rank == 0:
            writer.add_scalar("eval/changed_IoU", iou_class[1], epoch)
            writer.add_scalar("eval/overall_accuracy", overall_acc, epoch)
            writer.add_scalar("eval/unchanged_IoU_ema", iou_class_ema[0], epoch)
            writer.add_scalar("eval/changed_IoU_ema", iou_class_ema[1], epoch)
            writer.add_scalar("eval/overall_accuracy_ema", overall_acc_ema, epoch)
        improved, best = iou_class_ema[1] >= best, max(iou_class_ema[1], best)
        if rank == 0:
            checkpoint = {name: owner.state_dict() for name, owner in kept.items()}
            checkpoint |= {"epoch": epoch, "previous_best": best}
            torch.save(checkpoint, os.path.join(args.save_path, "latest.pth"))
            if improved:
                torch.save(checkpoint, os.path.join(args.save_path, "best.pth"))
    if rank == 0:
        writer.close()


if __name__ == "__main__":
    main()
