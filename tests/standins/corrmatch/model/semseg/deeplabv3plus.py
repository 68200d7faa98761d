import torch
import torch.nn.functional as F
from torch import nn

from model.backbone.resnet import block, resnet50


class DeepLabV3Plus(nn.Module):
    """Returns a dictionary; its maps of correlated pixels are the neighborhoods of a few places."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = resnet50(f"pretrained/{cfg['backbone']}.pth" if cfg["pretrain"] else None)
        self.fuse = nn.Sequential(*block(8 + 24, 32))
        self.classifier = nn.Conv2d(32, cfg["nclass"], kernel_size=1)
        self.proj = nn.Conv2d(24, cfg["nclass"], kernel_size=1)

    def parts(self):
        rest = [parameter for name, parameter in self.named_parameters() if not name.startswith("backbone.")]
        return list(self.backbone.parameters()), rest

    def forward(self, x, need_fp=False, use_corr=False):
        maps = fine, coarse = self.backbone(x)
        if need_fp:
            maps = [torch.cat((m, F.dropout2d(m, 0.5))) for m in maps]
        logits = enlarge(self.decode(*maps), x)
        found = dict(zip(("out", "out_fp"), logits.chunk(2))) if need_fp else {"out": logits}
        if use_corr:
            found["corr_out"] = enlarge(self.proj(coarse), x)
            features = F.normalize(coarse.detach().flatten(2), dim=1)
            places = torch.randint(0, features.shape[2], [4])
            likeness = torch.einsum("bcp,bcn->bpn", features[:, :, places], features)
            found["corr_map"] = enlarge(likeness.unflatten(2, coarse.shape[2:]), x) > 0.9
        return found

    def decode(self, fine, coarse):
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=True)
        return self.classifier(self.fuse(torch.cat((fine, coarse), dim=1)))


def enlarge(maps, x):
    return F.interpolate(maps, x.shape[2:], mode="bilinear", align_corners=True)
