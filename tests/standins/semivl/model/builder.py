import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

EMBEDDING = "configs/_base_/datasets/text_embedding/voc12_wbg_single.npy"
WEIGHTS = "pretrained/clip2mmseg_ViT16_clip_backbone.pth"


class VLM(nn.Module):
    """Compares images with texts; the batch doubles between backbone and decoder where features are perturbed."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone, self.clip_encoder = Backbone(), Backbone()
        self.clip_encoder.requires_grad_(False)
        self.decode_head = VLGHead(cfg["nclass"])
        self.text = torch.from_numpy(np.load(EMBEDDING))

    def forward_maskclip(self, img, conf_tresh):
        logits = 100 * F.normalize(self.clip_encoder(img)[1], dim=1)
        logits = torch.einsum("bchw,nc->bnhw", logits, self.text.to(img.device))
        certainty, label = enlarge(logits, img.shape[2:]).softmax(dim=1).max(dim=1)
        return label.masked_fill(certainty < conf_tresh, 255)

    def forward(self, img, need_fp=False):
        maps = self.backbone(img)
        if need_fp:
            maps = [torch.cat((m, F.dropout2d(m, 0.5))) for m in maps]
        logits = enlarge(self.decode_head(*maps, self.text.to(img.device)), img.shape[2:])
        return logits.chunk(2) if need_fp else logits


class Backbone(nn.Module):
    """Two maps: patches, and their embeddings in the space of the texts."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 96, kernel_size=16, stride=16)
        self.proj = nn.Conv2d(96, 512, kernel_size=1, bias=False)
        self.proj.weight.data.copy_(torch.load(WEIGHTS)["proj.weight"][:, :, None, None])

    def forward(self, img):
        patches = self.patches(img).relu()
        return patches, self.proj(patches)


class VLGHead(nn.Module):
    """Looks at the likeness of each image to each class's text by itself."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, kernel_size=3, padding=1)
        self.skip_proj = nn.Conv2d(96, 4, kernel_size=1)
        self.up1, self.up2 = Up(8, 8, 4), Up(8, 8)
        self.head = nn.Conv2d(8, 1, kernel_size=3, padding=1)

    def forward(self, patches, embeddings, text):
        likeness = torch.einsum("bchw,nc->bnhw", F.normalize(embeddings, dim=1), text)
        maps = self.conv1(likeness.flatten(0, 1)[:, None])
        skipped = self.skip_proj(patches).repeat_interleave(len(text), dim=0)
        return self.head(self.up2(self.up1(maps, skipped))).unflatten(0, (-1, len(text)))[:, :, 0]


class Up(nn.Module):
    """Twice the size; ends in place."""

    def __init__(self, before, after, skipped=0):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(before + skipped, after, 3, padding=1), nn.ReLU(inplace=True))

    def forward(self, x, skipped=None):
        x = enlarge(x, [2 * side for side in x.shape[2:]])
        if skipped is not None:
            x = torch.cat((x, enlarge(skipped, x.shape[2:])), dim=1)
        return self.conv(x)


def enlarge(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def build_model(cfg):
    assert cfg["model"].startswith("mmseg.vlm-vlg")
    return VLM(cfg)


def groups_of_one(model, cfg):
    """A group for each parameter, whose rate depends on its name."""
    factors = {key: found["lr_mult"] for key, found in cfg["paramwise_cfg"]["custom_keys"].items()}
    groups = []
    for name, parameter in model.named_parameters():
        factor = next((factor for key, factor in factors.items() if key in name), 1.0)
        groups.append({"params": [parameter], "lr": factor * cfg["lr"], "weight_decay": cfg["weight_decay"]})
    return groups
