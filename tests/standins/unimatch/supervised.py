import numpy as np
import torch

from util.utils import count_overlaps


def evaluate(model, loader, cfg):
    """Mean intersection over union, in percent."""
    model.eval()
    with torch.no_grad():
        pairs = [(model(img.cuda()).argmax(dim=1), mask) for img, mask in loader]
    intersection, union = count_overlaps(pairs, cfg["nclass"])
    return np.mean(100 * intersection / np.maximum(union, 1))
