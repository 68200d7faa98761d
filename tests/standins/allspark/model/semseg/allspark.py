import torch
import torch.nn.functional as F
from torch import nn


class SemiDecoder(nn.Module):
    """Lets the labeled images of a batch look at the other half's features, or at what a memory kept of them."""

    def __init__(self, num_heads, num_class, in_planes, image_size, warmup_epoch, embedding_dim):
        super().__init__()
        self.pseudo_prob_map, self.using_SMem, self.warmup_epoch = None, False, warmup_epoch
        self.attention = nn.Linear(in_planes[-1], in_planes[-1], bias=False)
        self.register_buffer("memory", torch.zeros(num_class, in_planes[-1]))
        self.decoder = SegFormerHead(embedding_dim, in_planes, num_class)

    def set_pseudo_prob_map(self, pseudo_prob_map):
        self.pseudo_prob_map = pseudo_prob_map

    def set_SMem_status(self, epoch, isVal=False):
        self.using_SMem = epoch >= self.warmup_epoch and not isVal

    def forward(self, maps, size):
        *maps, coarse = maps
        tokens = coarse.flatten(2).transpose(1, 2)
        if not self.training:
            tokens = torch.cat((tokens, tokens))
        labeled, unlabeled = tokens.chunk(2)
        looked_at = unlabeled.flatten(0, 1)
        if self.training:
            with torch.no_grad():
                share = F.adaptive_avg_pool2d(self.pseudo_prob_map.softmax(dim=1), coarse.shape[2:]).flatten(2)
                mean = torch.einsum("bkn,bnc->kc", share, unlabeled) / share.sum((0, 2))[:, None]
                self.memory.mul_(0.9).add_(mean, alpha=0.1)
            if self.using_SMem:
                looked_at = self.memory.clone()
        likeness = self.attention(labeled) @ looked_at.T / labeled.shape[2]
        tokens = torch.cat((labeled + likeness.softmax(dim=2) @ looked_at, unlabeled))[: len(coarse)]
        logits = self.decoder([*maps, tokens.transpose(1, 2).unflatten(2, coarse.shape[2:])])
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)


class SegFormerHead(nn.Module):
    def __init__(self, embedding_dim, in_planes, num_class):
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Conv2d(width, embedding_dim, kernel_size=1) for width in in_planes)
        self.linear_fuse = nn.Sequential(
            nn.Conv2d(4 * embedding_dim, embedding_dim, kernel_size=1, bias=False),
            nn.SyncBatchNorm(embedding_dim),
            nn.ReLU(inplace=True),
        )
        self.dropout = nn.Dropout2d(0.1)
        self.linear_pred = nn.Conv2d(embedding_dim, num_class, kernel_size=1)

    def forward(self, maps):
        embedded = [embedding(x) for embedding, x in zip(self.embeddings, maps)]
        size = embedded[0].shape[2:]
        embedded = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in embedded]
        return self.linear_pred(self.dropout(self.linear_fuse(torch.cat(embedded, dim=1))))
