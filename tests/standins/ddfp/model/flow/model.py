import torch
from torch import nn


class RNVP(nn.Module):
    """Scales and shifts each channel; returns the logarithm of the determinant too."""

    def __init__(self, cfg, means, learnable_mean=False):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.zeros(cfg["flow"]["input_dims"])) for _ in range(2))
        self.means = nn.Parameter(means, requires_grad=learnable_mean)

    def forward(self, x):
        return x * self.scale.exp() + self.shift, self.scale.sum() + 0 * self.means.sum()
