"""A stand-in, written for tests: has the shape of the script of BCP of that name, and a tiny network."""

import argparse
from asyncore import write  # noqa: F401
import logging
import os
import random
import shutil
import sys

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from tensorboardX import SummaryWriter
from torch.utils.data import DataLoader

from dataloaders.dataset import BaseDataSets, RandomGenerator, TwoStreamBatchSampler
from networks.net_factory import BCP_net, net_factory  # noqa: F401
from utils import losses, ramps, val_2d

parser = argparse.ArgumentParser()
parser.add_argument("--root_path", type=str, default="/data/ACDC")
parser.add_argument("--exp", type=str, default="BCP")
parser.add_argument("--model", type=str, default="unet")
parser.add_argument("--pre_iterations", type=int, default=10000)
parser.add_argument("--max_iterations", type=int, default=30000)
parser.add_argument("--batch_size", type=int, default=24)
parser.add_argument("--base_lr", type=float, default=0.01)
parser.add_argument("--seed", type=int, default=1337)
parser.add_argument("--num_classes", type=int, default=4)
parser.add_argument("--labeled_bs", type=int, default=12)
parser.add_argument("--labelnum", type=int, default=7)
parser.add_argument("--u_weight", type=float, default=0.5)
args = parser.parse_args()

dice_loss = losses.DiceLoss(n_classes=4)


def load_net(net, path):
    net.load_state_dict(torch.load(path)["net"])


def load_net_opt(net, optimizer, path):
    state = torch.load(path)
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["opt"])


def save_net_opt(net, optimizer, path):
    torch.save({"net": net.state_dict(), "opt": optimizer.state_dict()}, path)


def get_ACDC_masks(output, nms=0):
    """Labels; with nms the rows of each class that lie together, the other pixels becoming background."""
    masks = torch.max(F.softmax(output, dim=1), dim=1)[1]
    if nms == 1:
        scarce = masks.new_zeros(masks.shape, dtype=torch.bool)
        for index in range(1, output.shape[1]):
            there = masks == index
            scarce |= there & (there.sum(2, keepdim=True) <= 1)
        masks = masks.masked_fill(scarce, 0).float()
    return masks


def update_model_ema(model, ema_model, alpha):
    model_state, ema_state = model.state_dict(), ema_model.state_dict()
    ema_model.load_state_dict({key: alpha * ema_state[key] + (1 - alpha) * model_state[key] for key in model_state})


def generate_mask(img):
    """Ones, and zeros in a patch; for an image and for a batch."""
    height, width = img.shape[2:]
    mask = torch.ones(height, width, dtype=torch.long)
    top, left = np.random.randint(0, height // 3), np.random.randint(0, width // 3)
    mask[top : top + 2 * height // 3, left : left + 2 * width // 3] = 0
    return mask.cuda(), mask.repeat(len(img), 1, 1).cuda()


def mix_loss(output, img_l, patch_l, mask, u_weight=0.5, unlab=False):
    weights = (u_weight, 1.0) if unlab else (1.0, u_weight)
    mixed = torch.where(mask == 1, img_l.long(), patch_l.long())
    loss_ce = nn.CrossEntropyLoss(reduction="none")(output, mixed)
    shares = torch.where(mask == 1, *weights)
    return dice_loss(F.softmax(output, dim=1), mixed.unsqueeze(1)), (loss_ce * shares).mean()


def loaders():
    db_train = BaseDataSets(args.root_path, "train", RandomGenerator())
    known = {2: 27, 4: 53}[args.labelnum]
    batch_sampler = TwoStreamBatchSampler(
        range(known), range(known, len(db_train)), args.batch_size, args.batch_size - args.labeled_bs
    )
    return DataLoader(db_train, batch_sampler=batch_sampler), DataLoader(BaseDataSets(args.root_path, "val"))


def mean_dice(model, valloader, num_classes):
    model.eval()
    found = [val_2d.test_single_volume(batch["image"], batch["label"], model, num_classes) for batch in valloader]
    model.train()
    return np.mean(found, axis=(0, 1))[0]


def pre_train(args, snapshot_path):
    model = BCP_net(in_chns=1, class_num=args.num_classes)
    trainloader, valloader = loaders()
    optimizer = optim.SGD(model.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=0.0001)
    writer = SummaryWriter(snapshot_path + "/log")
    model.train()
    iter_num = 0
    best_performance = 0.0
    while iter_num < args.pre_iterations:
        for sampled_batch in trainloader:
            half = args.labeled_bs // 2
            volume_batch, label_batch = sampled_batch["image"].cuda(), sampled_batch["label"].cuda()
            img_a, img_b = volume_batch[:half], volume_batch[half : args.labeled_bs]
            lab_a, lab_b = label_batch[:half], label_batch[half : args.labeled_bs]
            img_mask, loss_mask = generate_mask(img_a)
            out_mixl = model(img_a * img_mask + img_b * (1 - img_mask))
            loss_dice, loss_ce = mix_loss(out_mixl, lab_a, lab_b, loss_mask, u_weight=1.0, unlab=True)
            loss = (loss_dice + loss_ce) / 2

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            iter_num += 1
            writer.add_scalar("info/total_loss", loss, iter_num)
            if iter_num % 200 == 0:
                performance = mean_dice(model, valloader, args.num_classes)
                writer.add_scalar("info/val_mean_dice", performance, iter_num)
                if performance > best_performance:
                    best_performance = performance
                    save_net_opt(model, optimizer, os.path.join(snapshot_path, "{}_best_model.pth".format(args.model)))
            if iter_num >= args.pre_iterations:
                break
    writer.close()


def self_train(args, pre_snapshot_path, snapshot_path):
    num_classes = args.num_classes
    max_iterations = args.max_iterations
    pre_trained_model = os.path.join(pre_snapshot_path, "{}_best_model.pth".format(args.model))
    labeled_sub_bs, unlabeled_sub_bs = int(args.labeled_bs / 2), int((args.batch_size - args.labeled_bs) / 2)
    model = BCP_net(in_chns=1, class_num=num_classes)
    ema_model = BCP_net(in_chns=1, class_num=num_classes, ema=True)
    trainloader, valloader = loaders()
    optimizer = optim.SGD(model.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=0.0001)
    load_net(ema_model, pre_trained_model)
    load_net_opt(model, optimizer, pre_trained_model)
    logging.info("Loaded from {}".format(pre_trained_model))
    writer = SummaryWriter(snapshot_path + "/log")
    model.train()
    ema_model.train()

    iter_num = 0
    best_performance = 0.0
    while iter_num < max_iterations:
        for sampled_batch in trainloader:
            volume_batch, label_batch = sampled_batch["image"].cuda(), sampled_batch["label"].cuda()
            known = args.labeled_bs
            img_a, img_b = volume_batch[:labeled_sub_bs], volume_batch[labeled_sub_bs:known]
            uimg_a, uimg_b = volume_batch[known : known + unlabeled_sub_bs], volume_batch[known + unlabeled_sub_bs :]
            lab_a, lab_b = label_batch[:labeled_sub_bs], label_batch[labeled_sub_bs:known]
            with torch.no_grad():
                pre_a = ema_model(uimg_a)
                pre_b = ema_model(uimg_b)
                plab_a = get_ACDC_masks(pre_a, nms=1)
                plab_b = get_ACDC_masks(pre_b, nms=1)
                img_mask, loss_mask = generate_mask(img_a)
            consistency_weight = 0.5 * ramps.sigmoid_rampup(iter_num // 150, 200.0)

            net_input_unl = uimg_a * img_mask + img_a * (1 - img_mask)
            net_input_l = img_b * img_mask + uimg_b * (1 - img_mask)
            out_unl = model(net_input_unl)
            out_l = model(net_input_l)
            unl_dice, unl_ce = mix_loss(out_unl, plab_a, lab_a, loss_mask, u_weight=args.u_weight, unlab=True)
            l_dice, l_ce = mix_loss(out_l, lab_b, plab_b, loss_mask, u_weight=args.u_weight)
            loss = (unl_dice + l_dice + unl_ce + l_ce) / 2

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            iter_num += 1
            update_model_ema(model, ema_model, 0.99)

            writer.add_scalar("info/total_loss", loss, iter_num)
            writer.add_scalar("info/consistency_weight", consistency_weight, iter_num)
            logging.info("iteration %d: loss: %f" % (iter_num, loss))
            if iter_num % 200 == 0:
                performance = mean_dice(model, valloader, num_classes)
                writer.add_scalar("info/val_mean_dice", performance, iter_num)

                if performance > best_performance:
                    best_performance = performance
                    name = "iter_{}_dice_{}.pth".format(iter_num, round(best_performance, 4))
                    save_mode_path = os.path.join(snapshot_path, name)
                    save_best_path = os.path.join(snapshot_path, "{}_best_model.pth".format(args.model))
                    torch.save(model.state_dict(), save_mode_path)
                    torch.save(model.state_dict(), save_best_path)
            if iter_num >= max_iterations:
                break
    writer.close()


if __name__ == "__main__":
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(args.seed)
    pre_snapshot_path = "./model/BCP/ACDC_{}_{}_labeled/pre_train".format(args.exp, args.labelnum)
    self_snapshot_path = "./model/BCP/ACDC_{}_{}_labeled/self_train".format(args.exp, args.labelnum)
    for snapshot_path in [pre_snapshot_path, self_snapshot_path]:
        os.makedirs(snapshot_path, exist_ok=True)
    shutil.copy("../code/ACDC_BCP_train.py", self_snapshot_path)
    logging.basicConfig(filename=pre_snapshot_path + "/log.txt", level=logging.INFO)
    logging.getLogger().addHandler(logging.StreamHandler(sys.stdout))
    pre_train(args, pre_snapshot_path)
    self_train(args, pre_snapshot_path, self_snapshot_path)
