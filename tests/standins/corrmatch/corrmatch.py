"""A stand-in, written for tests: has the shape of CorrMatch's corrmatch.py, and a tiny network."""

import argparse
import logging
import os
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from dataset.semi import loaders
from evaluate import evaluate
from model.semseg.deeplabv3plus import DeepLabV3Plus
from util.dist_helper import parallel, setup_distributed
from util.thresh_helper import ThreshController
from util.utils import cutmix, init_log

os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"

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
    os.makedirs(args.save_path, exist_ok=True)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)

    model = DeepLabV3Plus(cfg)
    rates = cfg["lr"], cfg["lr"] * cfg["lr_multi"]
    groups = [{"params": params, "lr": lr} for params, lr in zip(model.parts(), rates)]
    optimizer = torch.optim.SGD(groups, lr=rates[0], momentum=0.9, weight_decay=1e-4)
    model = parallel(model, find_unused_parameters=False)
    criterion_l = nn.CrossEntropyLoss(**cfg["criterion"]["kwargs"]).cuda()
    criterion_u = nn.CrossEntropyLoss(reduction="none").cuda()
    trainloader_l, trainloader_u, valloader = loaders(cfg, args.labeled_id_path, args.unlabeled_id_path)
    previous_best = 0.0
    thresh_controller = ThreshController(nclass=cfg["nclass"], momentum=0.999, thresh_init=cfg["thresh_init"])

    for epoch in range(cfg["epochs"]):
        for loader in (trainloader_l, trainloader_u):
            loader.sampler.set_epoch(epoch)
        for i, ((img_x, mask_x), views, others) in enumerate(zip(trainloader_l, trainloader_u, trainloader_u)):
            img_x, mask_x = img_x.cuda(), mask_x.cuda()
            img_u_w, img_u_s1, _, ignore_mask, box, _ = (view.cuda() for view in views)
            img_u_w_mix, img_u_s1_mix, _, ignore_mask_mix, _, _ = (view.cuda() for view in others)

            with torch.no_grad():
                model.eval()
                res_u_w_mix = model(img_u_w_mix, need_fp=False, use_corr=False)
                conf_u_w_mix, mask_u_w_mix = res_u_w_mix["out"].softmax(dim=1).max(dim=1)
                img_u_s1 = cutmix(box, img_u_s1, img_u_s1_mix)

            model.train()
            num_lb, num_ulb = img_x.shape[0], img_u_w.shape[0]
            res_w = model(torch.cat((img_x, img_u_w)), need_fp=True, use_corr=True)
            pred_x, pred_u_w = res_w["out"].split([num_lb, num_ulb])
            pred_x_corr, pred_u_w_corr = res_w["corr_out"].split([num_lb, num_ulb])
            res_s = model(img_u_s1, need_fp=False, use_corr=True)
            pred_u_s1, pred_u_s1_corr = res_s["out"], res_s["corr_out"]

            pred_u_w = pred_u_w.detach()
            conf_u_w, mask_u_w = pred_u_w.softmax(dim=1).max(dim=1)
            mask_u_w_cutmixed1 = cutmix(box, mask_u_w, mask_u_w_mix)
            conf_u_w_cutmixed1 = cutmix(box, conf_u_w, conf_u_w_mix)
            ignore_mask_cutmixed1 = cutmix(box, ignore_mask, ignore_mask_mix)
            valid = ignore_mask_cutmixed1 != 255

            thresh_controller.thresh_update(pred_u_w, ignore_mask_cutmixed1, update_g=True)
            thresh_global = thresh_controller.get_thresh_global()
            conf_fliter_u_w = (conf_u_w_cutmixed1 >= thresh_global) & valid
            conf_fliter_u_w_without_cutmix = conf_fliter_u_w.clone()
            for index, segments in enumerate(res_w["corr_map"][num_lb:]):
                for segment in segments & (valid & (box != 1))[index]:
                    if (segment & conf_fliter_u_w[index]).sum() > thresh_global * segment.sum():
                        labels, counts = mask_u_w_cutmixed1[index][segment].unique(return_counts=True)
                        mask_u_w_cutmixed1[index][segment] = labels[counts.argmax()]
                        conf_fliter_u_w_without_cutmix[index] |= segment

            sure = conf_fliter_u_w_without_cutmix / valid.sum()
            loss = criterion_l(pred_x, mask_x) + criterion_l(pred_x_corr, mask_x)
            for logits in (pred_u_s1, pred_u_s1_corr):
                loss = loss + (criterion_u(logits, mask_u_w_cutmixed1) * sure).sum()
            for logits in (res_w["out_fp"][num_lb:], pred_u_w_corr):
                sure_w = (conf_u_w >= thresh_global) & (ignore_mask != 255)
                loss = loss + (criterion_u(logits, mask_u_w) * sure_w / (ignore_mask != 255).sum()).sum()
            divergence = F.kl_div(pred_u_s1.log_softmax(dim=1), pred_u_w.softmax(dim=1), reduction="none").sum(dim=1)
            loss = loss + (divergence * conf_fliter_u_w / valid.sum()).sum()

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            left = 1 - (epoch * len(trainloader_u) + i) / (cfg["epochs"] * len(trainloader_u))
            for index, lr in enumerate(rates):
                optimizer.param_groups[index]["lr"] = left * lr

        res_val = evaluate(model, valloader, "original", cfg)
        mIOU = res_val["mIOU"]
        class_IOU = res_val["iou_class"]
        torch.distributed.barrier()
        if rank == 0:
            logger.info("***** Evaluation {} ***** >>>> meanIOU: {:.4f} \n".format("original", mIOU))
            logger.info("***** ClassIOU ***** >>>> \n{}\n".format(class_IOU))
        if mIOU > previous_best and rank == 0:
            if previous_best != 0:
                os.remove(os.path.join(args.save_path, "%s_%.3f.pth" % (cfg["backbone"], previous_best)))
            previous_best = mIOU
            torch.save(model.module.state_dict(), os.path.join(args.save_path, "%s_%.3f.pth" % (cfg["backbone"], mIOU)))
        torch.distributed.barrier()


if __name__ == "__main__":
    main()
