"""A stand-in, written for tests: has the shape of the script of SSL4MIS of that name, and a tiny network."""

import argparse
import logging
import os
import random
import sys

import numpy as np
import torch
from tensorboardX import SummaryWriter
from torch.nn.modules.loss import CrossEntropyLoss
from torch.utils.data import DataLoader

from dataloaders.dataset import BaseDataSets, RandomGenerator, TwoStreamBatchSampler
from networks.net_factory import net_factory
from utils import losses, ramps
from val_2D import test_single_volume

parser = argparse.ArgumentParser()
parser.add_argument("--root_path", default="../data/ACDC")
parser.add_argument("--exp", default="ACDC/Uncertainty_Aware_Mean_Teacher")
parser.add_argument("--model", default="unet")
parser.add_argument("--max_iterations", type=int, default=30000)
parser.add_argument("--batch_size", type=int, default=24)
parser.add_argument("--base_lr", type=float, default=0.01)
parser.add_argument("--seed", type=int, default=1337)
parser.add_argument("--num_classes", type=int, default=4)
parser.add_argument("--labeled_bs", type=int, default=12)
parser.add_argument("--labeled_num", type=int, default=136)
parser.add_argument("--ema_decay", type=float, default=0.99)
parser.add_argument("--consistency", type=float, default=0.1)
args = parser.parse_args()


def patients_to_slices(patients):
    return {2: 27, 4: 53}[patients]


def get_current_consistency_weight(epoch):
    return args.consistency * ramps.sigmoid_rampup(epoch, 200.0)


def update_ema_variables(model, ema_model, alpha, global_step):
    alpha = min(1 - 1 / (global_step + 1), alpha)
    for kept, new in zip(ema_model.parameters(), model.parameters()):
        kept.data.mul_(alpha).add_(new.data, alpha=1 - alpha)


def train(args, snapshot_path):
    num_classes = args.num_classes
    max_iterations = args.max_iterations

    def create_model(ema=False):
        model = net_factory(net_type=args.model, in_chns=1, class_num=num_classes)
        if ema:
            for param in model.parameters():
                param.detach_()
        return model

    model = create_model()
    ema_model = create_model(ema=True)
    model.train()

    db_train = BaseDataSets(args.root_path, "train", RandomGenerator())
    db_val = BaseDataSets(args.root_path, "val")
    known = patients_to_slices(args.labeled_num)
    batch_sampler = TwoStreamBatchSampler(
        range(known), range(known, len(db_train)), args.batch_size, args.batch_size - args.labeled_bs
    )
    trainloader = DataLoader(db_train, batch_sampler=batch_sampler)
    valloader = DataLoader(db_val)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=0.0001)
    ce_loss = CrossEntropyLoss()
    dice_loss = losses.DiceLoss(num_classes)
    writer = SummaryWriter(snapshot_path + "/log")

    iter_num = 0
    max_epoch = max_iterations // len(trainloader) + 1
    best_performance = 0.0
    for epoch_num in range(max_epoch):
        for i_batch, sampled_batch in enumerate(trainloader):
            volume_batch, label_batch = sampled_batch["image"].cuda(), sampled_batch["label"].cuda()
            unlabeled_volume_batch = volume_batch[args.labeled_bs :]
            noise = torch.clamp(torch.randn_like(unlabeled_volume_batch) * 0.1, -0.2, 0.2)
            ema_inputs = unlabeled_volume_batch + noise
            outputs = model(volume_batch)
            outputs_soft = torch.softmax(outputs, dim=1)
            with torch.no_grad():
                ema_output = ema_model(ema_inputs)
            repeated = unlabeled_volume_batch.repeat(2, 1, 1, 1)
            preds = []
            for i in range(4):
                ema_inputs = repeated + torch.clamp(torch.randn_like(repeated) * 0.1, -0.2, 0.2)
                with torch.no_grad():
                    preds.append(ema_model(ema_inputs))
            preds = torch.cat(preds).softmax(dim=1).unflatten(0, (8, -1)).mean(dim=0)
            uncertainty = -(preds * torch.log(preds + 1e-6)).sum(dim=1, keepdim=True)

            loss_ce = ce_loss(outputs[: args.labeled_bs], label_batch[: args.labeled_bs].long())
            loss_dice = dice_loss(outputs_soft[: args.labeled_bs], label_batch[: args.labeled_bs].unsqueeze(1))
            supervised_loss = 0.5 * (loss_dice + loss_ce)
            consistency_weight = get_current_consistency_weight(iter_num // 150)
            distance = losses.softmax_mse_loss(outputs[args.labeled_bs :], ema_output)
            mask = (uncertainty < (0.75 + 0.25 * ramps.sigmoid_rampup(iter_num, max_iterations)) * np.log(2)).float()
            consistency_loss = torch.sum(mask * distance) / (2 * torch.sum(mask) + 1e-16)
            loss = supervised_loss + consistency_weight * consistency_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            update_ema_variables(model, ema_model, args.ema_decay, iter_num)
            for param_group in optimizer.param_groups:
                param_group["lr"] = args.base_lr * (1.0 - iter_num / max_iterations) ** 0.9

            iter_num = iter_num + 1
            writer.add_scalar("info/total_loss", loss, iter_num)
            writer.add_scalar("info/consistency_weight", consistency_weight, iter_num)
            logging.info("iteration %d : loss : %f" % (iter_num, loss.item()))

            if iter_num > 0 and iter_num % 200 == 0:
                model.eval()
                metric_list = 0.0
                for i_batch, sampled_batch in enumerate(valloader):
                    metric_i = test_single_volume(
                        sampled_batch["image"], sampled_batch["label"], model, classes=num_classes
                    )
                    metric_list += np.array(metric_i)
                performance = np.mean(metric_list / len(db_val), axis=0)[0]
                writer.add_scalar("info/val_mean_dice", performance, iter_num)
                if performance > best_performance:
                    best_performance = performance
                    save_mode_path = os.path.join(
                        snapshot_path, "iter_{}_dice_{}.pth".format(iter_num, round(best_performance, 4))
                    )
                    save_best = os.path.join(snapshot_path, "{}_best_model.pth".format(args.model))
                    torch.save(model.state_dict(), save_mode_path)
                    torch.save(model.state_dict(), save_best)
                model.train()

            if iter_num % 3000 == 0:
                save_mode_path = os.path.join(snapshot_path, "iter_" + str(iter_num) + ".pth")
                torch.save(model.state_dict(), save_mode_path)
                logging.info("save model to {}".format(save_mode_path))

            if iter_num >= max_iterations:
                break
        if iter_num >= max_iterations:
            break
    writer.close()


if __name__ == "__main__":
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(args.seed)
    snapshot_path = "../model/{}_{}_labeled/{}".format(args.exp, args.labeled_num, args.model)
    os.makedirs(snapshot_path, exist_ok=True)
    logging.basicConfig(filename=snapshot_path + "/log.txt", level=logging.INFO)
    logging.getLogger().addHandler(logging.StreamHandler(sys.stdout))
    train(args, snapshot_path)
