import torch
from torch import nn


class ResNet(nn.Module):
    """Four stages of one convolution each."""

    def __init__(self):
        super().__init__()
        stages = ((3, 8, 4), (8, 12, 2), (12, 16, 1), (16, 24, 1))
        self.stages = nn.ModuleList(block(*stage) for stage in stages)

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[0], maps[-1]


def block(before, after, stride=1):
    convolution = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def resnet50(weights=None):
    model = ResNet()
    if weights is not None:
        model.load_state_dict(torch.load(weights))
    return model
