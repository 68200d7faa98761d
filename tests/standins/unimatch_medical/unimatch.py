"""A stand-in, written for tests: has the shape of UniMatch's medical script, and a tiny network."""

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

from dataset.acdc import ACDCDataset
from model.unet import UNet
from util.classes import CLASSES
from util.dist_helper import parallel, setup_distributed
from util.utils import cutmix, dice_loss, init_log

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

    model = UNet(in_chns=1, class_num=cfg["nclass"])
    optimizer = torch.optim.SGD(model.parameters(), cfg["lr"], momentum=0.9, weight_decay=1e-4)
    model = parallel(model, find_unused_parameters=False)
    criterion_ce = nn.CrossEntropyLoss()

    def loader(mode, path, batch_size, nsample=None):
        dataset = ACDCDataset(cfg["dataset"], cfg["data_root"], mode, cfg["crop_size"], path, nsample)
        options = {"batch_size": batch_size, "drop_last": mode != "val"}
        return DataLoader(dataset, sampler=DistributedSampler(dataset), **options)

    trainloader_u = loader("train_u", args.unlabeled_id_path, cfg["batch_size"])
    trainloader_l = loader("train_l", args.labeled_id_path, cfg["batch_size"], len(trainloader_u.dataset))
    trainloader_u_mix = loader("train_u", args.unlabeled_id_path, cfg["batch_size"])
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
        for loader, shift in ((trainloader_l, 0), (trainloader_u, 0), (trainloader_u_mix, cfg["epochs"])):
            loader.sampler.set_epoch(epoch + shift)
        batches = zip(trainloader_l, trainloader_u, trainloader_u_mix)
        for i, ((img_x, mask_x), views, others) in enumerate(batches):
            img_x, mask_x = img_x.cuda(), mask_x.cuda()
            img_u_w, img_u_s1, img_u_s2, box1, box2 = (view.cuda() for view in views)
            img_u_w_mix, img_u_s1_mix, img_u_s2_mix, _, _ = (view.cuda() for view in others)

            with torch.no_grad():
                model.eval()
                conf_u_w_mix, mask_u_w_mix = model(img_u_w_mix).softmax(dim=1).max(dim=1)
            img_u_s1, img_u_s2 = cutmix(box1, img_u_s1, img_u_s1_mix), cutmix(box2, img_u_s2, img_u_s2_mix)

            model.train()
            num_lb, num_ulb = img_x.shape[0], img_u_w.shape[0]
            preds, preds_fp = model(torch.cat((img_x, img_u_w)), True)
            pred_x, pred_u_w = preds.split([num_lb, num_ulb])
            pred_u_s1, pred_u_s2 = model(torch.cat((img_u_s1, img_u_s2))).chunk(2)
            conf_u_w, mask_u_w = pred_u_w.detach().softmax(dim=1).max(dim=1)

            mask_u_w_cutmixed1, mask_u_w_cutmixed2 = (cutmix(box, mask_u_w, mask_u_w_mix) for box in (box1, box2))
            conf_u_w_cutmixed1, conf_u_w_cutmixed2 = (cutmix(box, conf_u_w, conf_u_w_mix) for box in (box1, box2))
            terms = (
                (pred_u_s1, mask_u_w_cutmixed1, conf_u_w_cutmixed1),
                (pred_u_s2, mask_u_w_cutmixed2, conf_u_w_cutmixed2),
                (preds_fp[num_lb:], mask_u_w, conf_u_w),
            )
            loss = criterion_ce(pred_x, mask_x) + dice_loss(pred_x, mask_x)
            for logits, labels, confidence in terms:
                loss = loss + dice_loss(logits, labels, confidence >= cfg["conf_thresh"])

            torch.distributed.barrier()

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            iters = epoch * len(trainloader_u) + i
            lr = cfg["lr"] * (1 - iters / (cfg["epochs"] * len(trainloader_u))) ** 0.9
            optimizer.param_groups[0]["lr"] = lr
            mask_ratio = (conf_u_w > cfg["conf_thresh"]).float().mean()
            if rank == 0:
                writer.add_scalar("train/loss_all", loss.item(), iters)
                writer.add_scalar("train/mask_ratio", mask_ratio, iters)
            if i % (len(trainloader_u) // 8) == 0 and rank == 0:
                logger.info(f"iteration {iters}: loss {loss.item():.3f}")

        model.eval()
        with torch.no_grad():
            found = [(model(img[0].unsqueeze(1).cuda()).argmax(1), mask[0].cuda()) for img, mask in valloader]
        dice_class = [
            100
            * sum(2 * ((a == c) & (b == c)).sum().item() / ((a == c).sum() + (b == c).sum()).item() for a, b in found)
            / len(found)
            for c in range(1, cfg["nclass"])
        ]
        mean_dice = sum(dice_class) / len(dice_class)
        if rank == 0:
            writer.add_scalar("eval/MeanDice", mean_dice, epoch)
            for i, dice in enumerate(dice_class):
                writer.add_scalar(f"eval/{CLASSES[cfg['dataset']][i]}_dice", dice, epoch)
        improved, best = mean_dice > best, max(mean_dice, best)

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
