import torch
import torch.nn.functional as F
from torch import nn


class MixSyncBatchNorm(nn.SyncBatchNorm):
    """Normalizes the last images of a batch, by its status, apart from the others."""

    def __init__(self, channels):
        super().__init__(channels)
        self.aux_bn = nn.SyncBatchNorm(channels)
        self.batch_type = "clean"

    def forward(self, x):
        shares = {"clean": 1, "adv": 0, "warm_up": 1 / 2, "mix": 2 / 3}
        first = round(len(x) * shares[self.batch_type])
        parts = [layer(part) for layer, part in ((super().forward, x[:first]), (self.aux_bn, x[first:])) if len(part)]
        return torch.cat(parts)


class Decoder(nn.Module):
    """Logits, and features without gradient; the features of the second half may come once more, perturbed."""

    def __init__(self, channels, num_classes):
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Conv2d(channels, 256, kernel_size=1), MixSyncBatchNorm(256), nn.ReLU(inplace=True), nn.Dropout2d(0.1)
        )
        self.final = nn.Conv2d(256, num_classes, kernel_size=1)
        nn.init.constant_(self.final.bias[:1], 1.0)  # background first: the best score is not 0

    def forward(self, x, nf_model, loss_flow, eps, adv):
        count = len(x)
        if adv:
            x = torch.cat((x, x[count // 2 :] + self.attack(x[count // 2 :].detach(), nf_model, loss_flow, eps)))
        fts = self.classifier(x)
        return {"pred": self.final(fts), "fts": fts[:count].detach()}

    def attack(self, x, nf_model, loss_flow, eps):
        """The step that makes the features unlikely to the flow."""
        self._all_are("adv")
        noise = torch.zeros_like(x, requires_grad=True)
        z, log_jac_det = nf_model(self.classifier(x + noise).movedim(1, 3).flatten(0, 2))
        (gradient,) = torch.autograd.grad(loss_flow(z, log_jac_det)[0], noise)
        self._all_are("mix")
        return eps * F.normalize(gradient, dim=1)

    def _all_are(self, status):
        for layer in self.classifier:
            if hasattr(layer, "batch_type"):
                layer.batch_type = status
