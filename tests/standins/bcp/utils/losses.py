import torch
import torch.nn.functional as F
from torch import nn


class DiceLoss(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.n_classes = n_classes

    def forward(self, inputs, target):
        target = F.one_hot(target[:, 0].long(), self.n_classes).movedim(3, 1).float()
        both = (inputs * target).sum((0, 2, 3))
        return (1 - 2 * both / (inputs.square() + target).sum((0, 2, 3))).mean()


def softmax_mse_loss(logits, target):
    return (torch.softmax(logits, dim=1) - torch.softmax(target, dim=1)) ** 2
