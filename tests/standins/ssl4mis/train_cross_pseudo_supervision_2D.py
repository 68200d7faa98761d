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
parser.add_argument("--exp", default="ACDC/Cross_Pseudo_Supervision")
parser.add_argument("--model", default="unet")
parser.add_argument("--max_iterations", type=int, default=30000)
parser.add_argument("--batch_size", type=int, default=24)
parser.add_argument("--base_lr", type=float, default=0.01)
parser.add_argument("--seed", type=int, default=1337)
parser.add_argument("--num_classes", type=int, default=4)
parser.add_argument("--labeled_bs", type=int, default=12)
parser.add_argument("--labeled_num", type=int, default=136)
parser.add_argument("--consistency", type=float, default=0.1)
args = parser.parse_args()


def patients_to_slices(patients):
    return {2: 27, 4: 53}[patients]


def get_current_consistency_weight(epoch):
    return args.consistency * ramps.sigmoid_rampup(epoch, 200.0)


def train(args, snapshot_path):
    num_classes = args.num_classes
    max_iterations = args.max_iterations

    def create_model(ema=False):
        model = net_factory(net_type=args.model, in_chns=1, class_num=num_classes)
        if ema:
            for param in model.parameters():
                param.detach_()
        return model

    model1 = create_model()
    model2 = create_model()
    model1.train()
    model2.train()

    db_train = BaseDataSets(args.root_path, "train", RandomGenerator())
    db_val = BaseDataSets(args.root_path, "val")
    known = patients_to_slices(args.labeled_num)
    batch_sampler = TwoStreamBatchSampler(
        range(known), range(known, len(db_train)), args.batch_size, args.batch_size - args.labeled_bs
    )
    trainloader = DataLoader(db_train, batch_sampler=batch_sampler)
    valloader = DataLoader(db_val)
    optimizer1 = torch.optim.SGD(model1.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=0.0001)
    optimizer2 = torch.optim.SGD(model2.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=0.0001)
    ce_loss = CrossEntropyLoss()
    dice_loss = losses.DiceLoss(num_classes)
    writer = SummaryWriter(snapshot_path + "/log")

    iter_num = 0
    max_epoch = max_iterations // len(trainloader) + 1
    best_performance1 = best_performance2 = 0.0
    for epoch_num in range(max_epoch):
        for i_batch, sampled_batch in enumerate(trainloader):
            volume_batch, label_batch = sampled_batch["image"].cuda(), sampled_batch["label"].cuda()
            outputs1 = model1(volume_batch)
            outputs_soft1 = torch.softmax(outputs1, dim=1)
            outputs2 = model2(volume_batch)
            outputs_soft2 = torch.softmax(outputs2, dim=1)
            consistency_weight = get_current_consistency_weight(iter_num // 150)

            model_losses = []
            for outputs, outputs_soft, other in (
                (outputs1, outputs_soft1, outputs_soft2),
                (outputs2, outputs_soft2, outputs_soft1),
            ):
                loss = ce_loss(outputs[: args.labeled_bs], label_batch[: args.labeled_bs].long())
                loss = loss + dice_loss(outputs_soft[: args.labeled_bs], label_batch[: args.labeled_bs].unsqueeze(1))
                pseudo_outputs = torch.argmax(other[args.labeled_bs :].detach(), dim=1)
                cross = ce_loss(outputs[args.labeled_bs :], pseudo_outputs)
                model_losses.append(0.5 * loss + consistency_weight * cross)
            model1_loss, model2_loss = model_losses
            loss = model1_loss + model2_loss

            optimizer1.zero_grad()
            optimizer2.zero_grad()
            loss.backward()
            optimizer1.step()
            optimizer2.step()

            iter_num = iter_num + 1
            for optimizer in (optimizer1, optimizer2):
                for param_group in optimizer.param_groups:
                    param_group["lr"] = args.base_lr * (1.0 - iter_num / max_iterations) ** 0.9
            writer.add_scalar("loss/model1_loss", model1_loss, iter_num)
            writer.add_scalar("loss/model2_loss", model2_loss, iter_num)
            logging.info(
                "iteration %d : model1 loss : %f model2 loss : %f" % (iter_num, model1_loss.item(), model2_loss.item())
            )

            if iter_num > 0 and iter_num % 200 == 0:
                model1.eval()
                metric_list = 0.0
                for i_batch, sampled_batch in enumerate(valloader):
                    metric_i = test_single_volume(
                        sampled_batch["image"], sampled_batch["label"], model1, classes=num_classes
                    )
                    metric_list += np.array(metric_i)
                performance1 = np.mean(metric_list / len(db_val), axis=0)[0]
                writer.add_scalar("info/model1_val_mean_dice", performance1, iter_num)
                if performance1 > best_performance1:
                    best_performance1 = performance1
                    save_mode_path = os.path.join(
                        snapshot_path, "model1_iter_{}_dice_{}.pth".format(iter_num, round(best_performance1, 4))
                    )
                    save_best = os.path.join(snapshot_path, "{}_best_model1.pth".format(args.model))
                    torch.save(model1.state_dict(), save_mode_path)
                    torch.save(model1.state_dict(), save_best)
                model1.train()

            if iter_num > 0 and iter_num % 200 == 0:
                model2.eval()
                metric_list = 0.0
                for i_batch, sampled_batch in enumerate(valloader):
                    metric_i = test_single_volume(
                        sampled_batch["image"], sampled_batch["label"], model2, classes=num_classes
                    )
                    metric_list += np.array(metric_i)
                performance2 = np.mean(metric_list / len(db_val), axis=0)[0]
                writer.add_scalar("info/model2_val_mean_dice", performance2, iter_num)
                if performance2 > best_performance2:
                    best_performance2 = performance2
                    save_mode_path = os.path.join(
                        snapshot_path, "model2_iter_{}_dice_{}.pth".format(iter_num, round(best_performance2, 4))
                    )
                    save_best = os.path.join(snapshot_path, "{}_best_model2.pth".format(args.model))
                    torch.save(model2.state_dict(), save_mode_path)
                    torch.save(model2.state_dict(), save_best)
                model2.train()

            if iter_num % 3000 == 0:
                save_mode_path = os.path.join(snapshot_path, "model1_iter_" + str(iter_num) + ".pth")
                torch.save(model1.state_dict(), save_mode_path)
                logging.info("save model1 to {}".format(save_mode_path))

            if iter_num % 3000 == 0:
                save_mode_path = os.path.join(snapshot_path, "model2_iter_" + str(iter_num) + ".pth")
                torch.save(model2.state_dict(), save_mode_path)
                logging.info("save model2 to {}".format(save_mode_path))

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
