"""A stand-in, written for tests: has the shape of UniMatch's remote-sensing script, and a tiny network."""

import argparse
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
from model.semseg.deeplabv3plus import DeepLabV3Plus
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

    model = DeepLabV3Plus(cfg)
    rates = cfg["lr"], cfg["lr"] * cfg["lr_multi"]
    groups = [{"params": params, "lr": lr} for params, lr in zip(model.parts(), rates)]
    optimizer = torch.optim.SGD(groups, lr=rates[0], momentum=0.9, weight_decay=1e-4)
    model = parallel(model, find_unused_parameters=False)
    criterion_l = nn.CrossEntropyLoss(ignore_index=255).cuda()

    def loader(mode, path, batch_size, nsample=None):
        dataset = SemiCDDataset(cfg["dataset"], cfg["data_root"], mode, cfg["crop_size"], path, nsample)
        options = {"batch_size": batch_size, "drop_last": mode != "val"}
        return DataLoader(dataset, sampler=DistributedSampler(dataset), **options)

    trainloader_u = loader("train_u", args.unlabeled_id_path, cfg["batch_size"])
    trainloader_l = loader("train_l", args.labeled_id_path, cfg["batch_size"], len(trainloader_u.dataset))
    valloader = loader("val", None, 1)

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
        batches = zip(trainloader_l, trainloader_u, trainloader_u)
        for i, ((imgA_x, imgB_x, mask_x), views, others) in enumerate(batches):
            imgA_x, imgB_x, mask_x = imgA_x.cuda(), imgB_x.cuda(), mask_x.cuda()
            imgA_u_w, imgB_u_w, *strong, ignore_mask, box1, box2 = (view.cuda() for view in views)
            imgA_u_w_mix, imgB_u_w_mix, *strong_mix, ignore_mask_mix, _, _ = (view.cuda() for view in others)

            with torch.no_grad():
                model.eval()
                conf_u_w_mix, mask_u_w_mix = model(imgA_u_w_mix, imgB_u_w_mix).softmax(dim=1).max(dim=1)
            boxes = box1, box1, box2, box2
            mixed = [cutmix(box, own, other) for box, own, other in zip(boxes, strong, strong_mix)]
            imgA_u_s1, imgB_u_s1, imgA_u_s2, imgB_u_s2 = mixed

            model.train()
            num_lb, num_ulb = imgA_x.shape[0], imgA_u_w.shape[0]
            preds, preds_fp = model(torch.cat((imgA_x, imgA_u_w)), torch.cat((imgB_x, imgB_u_w)), True)
            pred_x, pred_u_w = preds.split([num_lb, num_ulb])
            strong_preds = model(torch.cat((imgA_u_s1, imgA_u_s2)), torch.cat((imgB_u_s1, imgB_u_s2)))
            pred_u_s1, pred_u_s2 = strong_preds.chunk(2)
            conf_u_w, mask_u_w = pred_u_w.detach().softmax(dim=1).max(dim=1)

            mask_u_w_cutmixed1, mask_u_w_cutmixed2 = (cutmix(box, mask_u_w, mask_u_w_mix) for box in (box1, box2))
            conf_u_w_cutmixed1, conf_u_w_cutmixed2 = (cutmix(box, conf_u_w, conf_u_w_mix) for box in (box1, box2))
            ignore_mask_cutmixed1, ignore_mask_cutmixed2 = (
                cutmix(box, ignore_mask, ignore_mask_mix) for box in (box1, box2)
            )
            terms = (
                (pred_u_s1, mask_u_w_cutmixed1, conf_u_w_cutmixed1, ignore_mask_cutmixed1),
                (pred_u_s2, mask_u_w_cutmixed2, conf_u_w_cutmixed2, ignore_mask_cutmixed2),
                (preds_fp[num_lb:], mask_u_w, conf_u_w, ignore_mask),
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
            mask_ratio = (conf_u_w > cfg["conf_thresh"]).float().mean()
            if rank == 0:
                writer.add_scalar("train/loss_all", loss.item(), iters)
                writer.add_scalar("train/mask_ratio", mask_ratio, iters)
            if i % (len(trainloader_u) // 8) == 0 and rank == 0:
                logger.info(f"iteration {iters}: loss {loss.item():.3f}")

        iou_class, overall_acc = evaluate(model, valloader, cfg)
        if rank == 0:
            writer.add_scalar("eval/unchanged_IoU", iou_class[0], epoch)
            writer.add_scalar("eval/changed_IoU", iou_class[1], epoch)
            writer.add_scalar("eval/overall_accuracy", overall_acc, epoch)
        improved, best = iou_class[1] > best, max(iou_class[1], best)

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
