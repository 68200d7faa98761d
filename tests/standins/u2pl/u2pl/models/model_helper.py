from importlib import import_module

from torch import nn


class ModelBuilder(nn.Module):
    """The encoder and decoder that the configuration names."""

    def __init__(self, net):
        super().__init__()
        self.encoder = build(**net["encoder"])
        self.decoder = build(**net["decoder"], num_classes=net["num_classes"])

    def forward(self, x):
        return self.decoder(self.encoder(x))


def build(type, kwargs, **more):
    module, _, name = type.rpartition(".")
    return getattr(import_module(module), name)(**kwargs, **more)
