from torch import nn


class DINOv2(nn.Module):
    """Patches of 14 pixels as tokens, and two small layers on each."""

    def __init__(self, model_name):
        super().__init__()
        self.embed_dim = {"small": 24}[model_name]
        self.patches = nn.Conv2d(3, self.embed_dim, kernel_size=14, stride=14)
        self.layers = nn.ModuleList(nn.Linear(self.embed_dim, self.embed_dim) for _ in range(2))

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        outputs = []
        for layer in self.layers:
            tokens = tokens + layer(tokens).relu()
            outputs.append(tokens)
        return outputs
