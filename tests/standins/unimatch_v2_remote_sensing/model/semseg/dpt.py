import torch
import torch.nn.functional as F
from torch import nn

from model.backbone.dinov2 import DINOv2


class RefineNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, kernel_size=3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x):
        return F.interpolate(x + self.layers(x), scale_factor=2.0, mode="bilinear", align_corners=True)


class Head(nn.Module):
    def __init__(self, channels, width, nclass):
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(2 * channels, width, kernel_size=4, stride=4)
        self.scratch = nn.Module()
        self.scratch.refinenet1 = RefineNet(width)
        self.scratch.output_conv = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, nclass, kernel_size=1),
        )

    def forward(self, layers, size):
        maps = torch.cat([layer.transpose(1, 2).unflatten(2, size) for layer in layers], dim=1)
        return self.scratch.output_conv(self.scratch.refinenet1(self.enlarge(maps)))


class DPT(nn.Module):
    """Decodes the difference between two images; its maps are nearly as large as they are."""

    def __init__(self, encoder_size, nclass, width=16):
        super().__init__()
        self.backbone = DINOv2(model_name=encoder_size)
        self.head = Head(self.backbone.embed_dim, width, nclass)

    def parts(self):
        return list(self.backbone.parameters()), list(self.head.parameters())

    def forward(self, x1, x2, comp_drop=False):
        layers = [(before - after).abs() for before, after in zip(self.backbone(x1), self.backbone(x2))]
        if comp_drop:  # what one half of the batch drops, the other keeps
            kept = torch.rand(len(x1) // 2, 1, layers[0].shape[2], device=x1.device) < 0.5
            layers = [2 * torch.cat((kept, ~kept)) * layer for layer in layers]
        logits = self.head(layers, [side // 14 for side in x1.shape[2:]])
        return F.interpolate(logits, x1.shape[2:], mode="bilinear", align_corners=True)
