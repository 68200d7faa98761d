import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Sequential):
    def __init__(self, before, after, dropout):
        convolution = nn.Conv2d(before, after, kernel_size=3, padding=1)
        super().__init__(convolution, nn.BatchNorm2d(after), nn.LeakyReLU(inplace=True), nn.Dropout(dropout))


class UpBlock(nn.Module):
    def __init__(self, below, beside, after):
        super().__init__()
        self.conv = Block(below + beside, after, 0.0)

    def forward(self, coarse, fine):
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=True)
        return self.conv(torch.cat((fine, coarse), dim=1))


class Decoder(nn.Module):
    def __init__(self, widths, classes):
        super().__init__()
        self.up4 = UpBlock(widths[1], widths[0], widths[0])
        self.out_conv = nn.Conv2d(widths[0], classes, kernel_size=3, padding=1)

    def forward(self, maps):
        return self.out_conv(self.up4(maps[1], maps[0]))


class UNet(nn.Module):
    """Returns logits, and nothing else."""

    def __init__(self, in_chns, class_num, widths=(6, 10)):
        super().__init__()
        self.encoder = nn.ModuleList([Block(in_chns, widths[0], 0.05), Block(widths[0], widths[1], 0.1)])
        self.decoder = Decoder(widths, class_num)

    def forward(self, x):
        fine = self.encoder[0](x)
        return self.decoder([fine, self.encoder[1](F.max_pool2d(fine, 2))])
