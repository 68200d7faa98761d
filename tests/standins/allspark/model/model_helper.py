import importlib

from torch import nn


class ModelBuilder(nn.Module):
    """A backbone and a decoder, whose classes the settings name."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone, self.decoder = (build(cfg[part]) for part in ("backbone", "decoder"))

    def forward(self, x):
        return self.decoder(self.backbone(x), x.shape[2:])


def build(cfg):
    module, name = cfg["type"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**cfg["kwargs"])
