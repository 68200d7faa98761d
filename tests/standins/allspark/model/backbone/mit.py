from torch import nn


class MixVisionTransformer(nn.Module):
    """Four stages of one convolution each."""

    def __init__(self, widths):
        super().__init__()
        sizes = zip((3, *widths), widths, (4, 2, 2, 2))
        self.stages = nn.ModuleList(nn.Conv2d(before, after, side, stride=side) for before, after, side in sizes)

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x).relu()
            maps.append(x)
        return maps


def mit_b2(embed_dims, pretrained):
    assert not pretrained
    return MixVisionTransformer(embed_dims)
