import numpy as np
import torch

from util.utils import count_overlaps


def evaluate(model, loader, cfg):
    """Intersection over union of each class, and accuracy, in percent."""
    model.eval()
    with torch.no_grad():
        pairs = [(model(a.cuda(), b.cuda()).argmax(dim=1), mask) for a, b, mask, _ in loader]
    intersection, union = count_overlaps(pairs, cfg["nclass"])
    right = np.mean([(found.cpu() == mask).float().mean().item() for found, mask in pairs])
    return 100 * intersection / np.maximum(union, 1), 100 * right
