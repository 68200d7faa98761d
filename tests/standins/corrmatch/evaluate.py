import numpy as np
import torch

from util.utils import count_overlaps


def evaluate(model, loader, mode, cfg):
    """Intersection over union: the mean in percent, and of each class as a fraction."""
    assert mode == "original"
    model.eval()
    with torch.no_grad():
        pairs = [(model(img.cuda())["out"].argmax(dim=1), mask) for img, mask in loader]
    intersection, union = count_overlaps(pairs, cfg["nclass"])
    iou_class = intersection / np.maximum(union, 1)
    return {"iou_class": iou_class, "mIOU": 100 * np.mean(iou_class)}
