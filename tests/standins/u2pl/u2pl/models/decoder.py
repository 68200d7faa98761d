from torch import nn


class dec_deeplabv3_plus(nn.Module):
    """Logits, and representations of 256 channels."""

    def __init__(self, num_classes, **options):
        super().__init__()
        self.classes, self.representation = branch(num_classes), branch(256)
        nn.init.constant_(self.classes[-1].bias[:1], 1.0)  # background first: the best score is not 0

    def forward(self, x):
        return {"pred": self.classes(x), "rep": self.representation(x)}


def branch(channels):
    first = nn.Conv2d(24, 16, kernel_size=3, padding=1)
    return nn.Sequential(
        first, nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(16, channels, kernel_size=1)
    )
