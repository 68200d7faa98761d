import torch
import torch.nn.functional as F
from torch import nn

from model.backbone.resnet import block, resnet50


class DeepLabV3Plus(nn.Module):
    """Doubles the batch within when it perturbs features; its features come from a layer that works in place."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = resnet50(f"pretrained/{cfg['backbone']}.pth")
        self.fuse = nn.Sequential(*block(8 + 24, 32))
        self.classifier = nn.Conv2d(32, cfg["nclass"], kernel_size=1)

    def parts(self):
        rest = [parameter for name, parameter in self.named_parameters() if not name.startswith("backbone.")]
        return list(self.backbone.parameters()), rest

    def forward(self, x, need_fp=False):
        maps = self.backbone(x)
        if need_fp:
            maps = [torch.cat((m, F.dropout2d(m, 0.5))) for m in maps]
        fine, coarse = maps
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=True)
        logits = self.classifier(self.fuse(torch.cat((fine, coarse), dim=1)))
        logits = F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)
        return logits.chunk(2) if need_fp else logits
